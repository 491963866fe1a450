//! What `delete` must know about a sandbox whose shim died. Written before the first thing that it names exists.
//!
//! It is short because most things lead back to the sandbox by themselves: its user id's file holds the sandbox's name,
//! its mounts lie below its directory, its processes are all in its cgroup.

use super::SandboxError;
use super::host::SandboxDirectory;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::path::PathBuf;

const MAX_LENGTH: u64 = 16 * 1024;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Where the sandbox's cgroup is, relative to the root of the hierarchy. Its name follows from the sandbox's.
    pub cgroup: PathBuf,
    /// What of that path exists because of the sandbox.
    pub made: Vec<PathBuf>,
    /// The pod's network namespace, in which redirections may be left.
    pub netns: Option<PathBuf>,
}

impl Record {
    pub fn write(&self, directory: &SandboxDirectory) -> Result<(), SandboxError> {
        let path = directory.record();
        // A reader sees all of it or nothing.
        let unfinished = path.with_extension("new");
        let write = || {
            let mut file = std::fs::File::create(&unfinished)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            std::fs::rename(&unfinished, &path)
        };
        write().map_err(SandboxError::host("write", &path.display()))
    }

    /// `None`: nothing was recorded, so that nothing exists.
    pub fn read(directory: &SandboxDirectory) -> Result<Option<Self>, SandboxError> {
        let path = directory.record();
        let read = || -> io::Result<Option<Self>> {
            let file = match std::fs::File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                file => file?,
            };
            let mut bytes = Vec::new();
            file.take(MAX_LENGTH).read_to_end(&mut bytes)?;
            Ok(Some(serde_json::from_slice(&bytes)?))
        };
        read().map_err(SandboxError::host("read", &path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::Host;
    use super::super::id::SandboxId;
    use super::*;

    fn directory(root: &tempfile::TempDir) -> SandboxDirectory {
        let directory = Host::below(root.path()).directory(&SandboxId::test("ns", "pod"));
        std::fs::create_dir_all(&directory.path).unwrap();
        directory
    }

    #[test]
    fn a_record_survives_a_round_trip() {
        let root = tempfile::tempdir().unwrap();
        let directory = directory(&root);
        let record = Record { cgroup: "default/pod".into(), made: vec!["default/pod".into()], netns: None };
        record.write(&directory).unwrap();
        assert_eq!(Record::read(&directory).unwrap(), Some(record));
    }

    #[test]
    fn no_record_means_nothing_exists() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(&directory(&root)).unwrap(), None);
    }

    #[test]
    fn a_broken_record_is_an_error_that_names_the_file() {
        let root = tempfile::tempdir().unwrap();
        let directory = directory(&root);
        std::fs::write(directory.record(), "{").unwrap();
        let error = Record::read(&directory).unwrap_err().to_string();
        assert!(error.contains(&directory.record().display().to_string()), "{error}");
    }
}
