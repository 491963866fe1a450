use super::*;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection};
use std::net::TcpListener;
use std::thread::JoinHandle;

/// An authority and the certificate of 127.0.0.1 that it signed, good for a hundred years.
pub(crate) const AUTHORITY: &str = include_str!("../testdata/ca.crt");
const CERTIFICATE: &str = include_str!("../testdata/server.crt");
const KEY: &str = include_str!("../testdata/server.key");

/// Answers one connection with `answer`, and returns what was asked.
pub(crate) fn server(answer: &'static str) -> (u16, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(KEY.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    let serve = move || {
        let (socket, _) = listener.accept().unwrap();
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), socket);
        let mut asked = Vec::new();
        let mut buffer = [0; 4096];
        while !asked.ends_with(b"}}}") {
            match stream.read(&mut buffer) {
                Ok(count @ 1..) => asked.extend_from_slice(&buffer[..count]),
                _ => break,
            }
        }
        stream.write_all(answer.as_bytes()).ok();
        String::from_utf8(asked).unwrap()
    };
    (port, std::thread::spawn(serve))
}

pub(crate) fn account(authority: &str) -> tempfile::TempDir {
    let account = tempfile::tempdir().unwrap();
    fs::write(account.path().join("token"), "secret\n").unwrap();
    fs::write(account.path().join("ca.crt"), authority).unwrap();
    account
}

pub(crate) fn cluster(port: u16, account: &Path) -> Cluster {
    let variable = |name: &str| match name {
        "KUBERNETES_SERVICE_HOST" => Some("127.0.0.1".to_owned()),
        "KUBERNETES_SERVICE_PORT" => Some(port.to_string()),
        _ => Some("node-1.example".to_owned()),
    };
    Cluster::new(variable, account).unwrap().unwrap()
}

#[test]
fn a_label_is_one_request_with_the_accounts_token() {
    for (ready, value) in [(true, "\"true\""), (false, "null")] {
        let (port, server) = server("HTTP/1.1 200 OK\r\n\r\n{}");
        let account = account(AUTHORITY);
        cluster(port, account.path()).label(ready).unwrap();
        let asked = server.join().unwrap();
        assert!(asked.starts_with("PATCH /api/v1/nodes/node-1.example HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("\r\nAuthorization: Bearer secret\r\n"), "{asked}");
        let body = format!("\r\n\r\n{{\"metadata\":{{\"labels\":{{\"bulkhead.io/ready\":{value}}}}}}}");
        assert!(asked.ends_with(&body), "{asked}");
    }
}

#[test]
fn a_refusal_says_what_is_missing() {
    let (port, server) = server("HTTP/1.1 403 Forbidden\r\n\r\n");
    let account = account(AUTHORITY);
    let error = format!("{:#}", cluster(port, account.path()).label(true).unwrap_err());
    assert_eq!(error, "cannot label the node node-1.example: the service account may not patch nodes (403)");
    server.join().unwrap();
}

#[test]
fn a_server_of_another_authority_gets_no_token() {
    let (port, server) = server("HTTP/1.1 200 OK\r\n\r\n");
    // A certificate, but not the one that signed the server's.
    let account = account(CERTIFICATE);
    cluster(port, account.path()).label(true).unwrap_err();
    assert_eq!(server.join().unwrap(), "");
}

#[test]
fn outside_of_a_cluster_there_is_nothing_to_label() {
    assert_eq!(Cluster::new(|_| None, Path::new("/")).unwrap(), None);
    let bad = |name: &str| (name != "KUBERNETES_SERVICE_PORT").then(|| "a/b".to_owned());
    assert!(Cluster::new(bad, Path::new("/")).unwrap_err().to_string().contains("\"a/b\""));
}
