//! The files that a pod's containers share: names and name servers. They live in the guest's memory, and the shim has
//! them bound into the containers.

use crate::error::Error;
use agent_protocol::agent::PodFiles;
use agent_protocol::{HOSTNAME, HOSTS, RESOLV_CONF};
use std::path::Path;

/// Writes all of them below `directory`.
pub fn write(files: &PodFiles, directory: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(directory).map_err(Error::system("create", directory.display()))?;
    for (name, content) in [(HOSTNAME, &files.hostname), (HOSTS, &files.hosts), (RESOLV_CONF, &files.resolv_conf)] {
        let path = directory.join(name);
        std::fs::write(&path, content).map_err(Error::system("write", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_has_its_content() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("pod");
        let files = PodFiles {
            hostname: b"web\n".to_vec(),
            hosts: b"127.0.0.1 localhost\n".to_vec(),
            resolv_conf: b"nameserver 10.0.0.1\n".to_vec(),
            ..PodFiles::default()
        };
        write(&files, &directory).unwrap();
        let read = |name| std::fs::read(directory.join(name)).unwrap();
        assert_eq!((read(HOSTNAME), read(HOSTS), read(RESOLV_CONF)), (files.hostname, files.hosts, files.resolv_conf));
    }
}
