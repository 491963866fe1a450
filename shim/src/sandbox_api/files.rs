//! The files that a pod's containers share, made from the pod's configuration.

use super::config::PodConfig;
use crate::error::TaskError;
use crate::sandbox::PodFiles;
use cri_protocol::DNSConfig;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Longest name server configuration, in bytes: the pod holds it in memory.
const MAX_RESOLV_CONF: u64 = 1024 * 1024;

/// The pod's own address is not known here; kubelet mounts a file of its own that has it.
const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// `node` is the node's own name server configuration, for a pod that has none.
pub(super) fn of_pod(pod: &PodConfig, hostname: &str, node: &Path) -> Result<PodFiles, TaskError> {
    let dns = &pod.0.dns_config;
    let asked = !dns.servers.is_empty() || !dns.searches.is_empty() || !dns.options.is_empty();
    let resolv_conf = if asked { resolv_conf(dns) } else { read(node)? };
    if resolv_conf.len() as u64 > MAX_RESOLV_CONF {
        return Err(TaskError::Invalid(format!(
            "the name server configuration of the pod is longer than {MAX_RESOLV_CONF} bytes"
        )));
    }
    Ok(PodFiles { hostname: format!("{hostname}\n").into(), hosts: HOSTS.into(), resolv_conf })
}

fn resolv_conf(dns: &DNSConfig) -> Vec<u8> {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text.into()
}

/// A node without the file has no name servers.
fn read(path: &Path) -> Result<Vec<u8>, TaskError> {
    let failed = |error| TaskError::Invalid(format!("cannot read {}: {error}", path.display()));
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file.map_err(failed)?,
    };
    let mut content = Vec::new();
    file.take(MAX_RESOLV_CONF + 1).read_to_end(&mut content).map_err(failed)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri_protocol::PodSandboxConfig;

    fn pod(dns: DNSConfig) -> PodConfig {
        PodConfig(PodSandboxConfig { dns_config: Some(dns).into(), ..Default::default() })
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn name_servers_are_the_pods() {
        let dns = DNSConfig {
            servers: texts(&["10.0.0.1", "fd00::1"]),
            searches: texts(&["a.local", "b.local"]),
            options: texts(&["ndots:5"]),
            ..Default::default()
        };
        let files = of_pod(&pod(dns), "web", Path::new("/nonexistent")).unwrap();
        let expected = "search a.local b.local\nnameserver 10.0.0.1\nnameserver fd00::1\noptions ndots:5\n";
        assert_eq!(String::from_utf8(files.resolv_conf).unwrap(), expected);
        assert_eq!(files.hostname, b"web\n");
        assert!(String::from_utf8(files.hosts).unwrap().starts_with("127.0.0.1\tlocalhost\n"));
    }

    #[test]
    fn a_pod_without_name_servers_has_the_nodes() {
        let root = tempfile::tempdir().unwrap();
        let node = root.path().join("resolv.conf");
        assert_eq!(of_pod(&pod(DNSConfig::default()), "web", &node).unwrap().resolv_conf, b"");
        std::fs::write(&node, "nameserver 192.0.2.1\n").unwrap();
        let files = of_pod(&pod(DNSConfig::default()), "web", &node).unwrap();
        assert_eq!(files.resolv_conf, b"nameserver 192.0.2.1\n");
    }

    #[test]
    fn a_configuration_without_end_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let node = root.path().join("resolv.conf");
        std::fs::write(&node, vec![b'#'; usize::try_from(MAX_RESOLV_CONF).unwrap() + 1]).unwrap();
        let error = of_pod(&pod(DNSConfig::default()), "web", &node).unwrap_err();
        assert!(error.to_string().ends_with("is longer than 1048576 bytes"), "{error}");
    }
}
