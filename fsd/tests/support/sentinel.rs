//! A tree beside the share, which nothing that a guest sends may change.

use super::Server;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub struct Sentinel {
    path: PathBuf,
    before: [u8; 32],
    /// What the directory of both has.
    neighbours: BTreeSet<OsString>,
}

impl Sentinel {
    /// Makes the tree: `../beside` as seen from the share.
    pub fn beside(server: &Server) -> Self {
        let path = server.share().parent().unwrap().join("beside");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("secret"), "beside the share").unwrap();
        fs::set_permissions(path.join("secret"), Permissions::from_mode(0o640)).unwrap();
        fs::create_dir(path.join("directory")).unwrap();
        let (before, neighbours) = (hash(&path), names(path.parent().unwrap()));
        Self { path, before, neighbours }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn check(&self) -> Result<(), String> {
        if hash(&self.path) != self.before {
            return Err("what lies beside the share has changed".into());
        }
        let neighbours = names(self.path.parent().unwrap());
        if neighbours == self.neighbours { Ok(()) } else { Err(format!("beside the share are {neighbours:?}")) }
    }
}

fn names(directory: &Path) -> BTreeSet<OsString> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

/// Names, modes, owners, times and content of a tree.
fn hash(tree: &Path) -> [u8; 32] {
    let mut state = Sha256::new();
    add(&mut state, tree);
    state.finalize().into()
}

fn add(hash: &mut Sha256, path: &Path) {
    let metadata = fs::symlink_metadata(path).unwrap();
    hash.update(path.as_os_str().as_bytes());
    for number in [metadata.mode().into(), metadata.uid().into(), metadata.gid().into(), metadata.nlink()] {
        hash.update(number.to_le_bytes());
    }
    for time in [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()] {
        hash.update(time.to_le_bytes());
    }
    if metadata.is_dir() {
        names(path).iter().for_each(|name| add(hash, &path.join(name)));
    } else {
        hash.update(fs::read(path).unwrap());
    }
}
