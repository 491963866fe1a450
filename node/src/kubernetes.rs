//! The Kubernetes API, as far as a node's label needs it: one request over TLS with the pod's service account.

use anyhow::{Context, Result, bail, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What `runtimeclass.yaml` selects nodes by.
const LABEL: &str = "bulkhead.io/ready";

const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// For the connection, and for each read and write.
const LIMIT: Duration = Duration::from_secs(10);

/// Longest status line that is read.
const MAX_LINE: u64 = 4096;

/// The cluster that this process is a pod of.
#[derive(Clone, PartialEq, Eq)]
pub struct Cluster {
    host: String,
    port: u16,
    /// The node's name in the cluster.
    node: String,
    /// Where token and certificate are. Both are read for each request: kubelet renews them.
    account: PathBuf,
}

impl Cluster {
    /// From what kubelet and the manifest put into a pod's environment; `None` outside of a cluster.
    pub fn from_environment() -> Result<Option<Self>> {
        Self::new(|name| std::env::var(name).ok(), Path::new(SERVICE_ACCOUNT))
    }

    fn new(variable: impl Fn(&str) -> Option<String>, account: &Path) -> Result<Option<Self>> {
        let Some(host) = variable("KUBERNETES_SERVICE_HOST") else { return Ok(None) };
        let port = variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".into());
        let port = port.parse().with_context(|| format!("KUBERNETES_SERVICE_PORT {port:?} is not a port"))?;
        let node = variable("NODE_NAME").context("NODE_NAME is not set: the manifest has to name the pod's node")?;
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
        ensure!(!node.is_empty() && node.bytes().all(plain), "NODE_NAME {node:?} is not the name of a node");
        Ok(Some(Self { host, port, node, account: account.to_owned() }))
    }

    /// Sets the node's label, or takes it away.
    pub fn label(&self, ready: bool) -> Result<()> {
        self.patch(ready).with_context(|| format!("cannot label the node {}", self.node))
    }

    fn patch(&self, ready: bool) -> Result<()> {
        let value = if ready { serde_json::json!("true") } else { serde_json::Value::Null };
        let body = serde_json::json!({"metadata": {"labels": {LABEL: value}}}).to_string();
        let token = read(&self.account.join("token"))?;
        let mut stream = self.connect()?;
        write!(
            stream,
            "PATCH /api/v1/nodes/{node} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/merge-patch+json\r\nAccept: application/json\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n{body}",
            node = self.node,
            host = self.host,
            token = token.trim(),
            length = body.len(),
        )?;
        stream.flush()?;
        let mut line = String::new();
        BufReader::new(stream.take(MAX_LINE)).read_line(&mut line).context("the API server did not answer")?;
        match line.split(' ').nth(1) {
            Some("200") => Ok(()),
            Some("403") => bail!("the service account may not patch nodes (403)"),
            _ => bail!("the API server answered {:?}", line.trim_end()),
        }
    }

    fn connect(&self) -> Result<StreamOwned<ClientConnection, TcpStream>> {
        let mut roots = RootCertStore::empty();
        let authority = self.account.join("ca.crt");
        for certificate in CertificateDer::pem_slice_iter(read(&authority)?.as_bytes()) {
            let certificate = certificate.with_context(|| format!("{} is no certificate", authority.display()))?;
            roots.add(certificate).with_context(|| format!("{} has no usable certificate", authority.display()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from(self.host.clone())?;
        let place = || format!("cannot connect to the API server {}, port {}", self.host, self.port);
        let mut addresses = (self.host.as_str(), self.port).to_socket_addrs().with_context(place)?;
        let address = addresses.next().with_context(place)?;
        let socket = TcpStream::connect_timeout(&address, LIMIT).with_context(place)?;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.set_write_timeout(Some(LIMIT))?;
        Ok(StreamOwned::new(ClientConnection::new(Arc::new(config), name)?, socket))
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Cluster({}:{}, node {})", self.host, self.port, self.node)
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
#[path = "kubernetes_tests.rs"]
pub(crate) mod tests;
