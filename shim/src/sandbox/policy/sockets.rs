//! Listed sockets that lie in a directory which a container mounts.

use super::{ContainerPolicy, Resolved};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

/// Of one mount.
const MAX_SOCKETS: usize = 64;

/// Entries of a listed directory that are looked at.
const MAX_ENTRIES: usize = 4096;

/// A socket, and its name in the directory.
#[derive(Debug)]
pub(in super::super) struct ListedSocket {
    pub name: PathBuf,
    pub socket: Resolved,
}

impl ContainerPolicy {
    /// The listed sockets below a directory, of those that are there. Not those further below a listed directory than its
    /// own entries.
    pub fn sockets_below(&self, directory: &Path) -> io::Result<Vec<ListedSocket>> {
        let mut paths = BTreeSet::new();
        for listed in &self.sockets {
            let place = if directory.starts_with(listed) { directory } else { listed };
            if place.starts_with(directory) {
                paths.insert(place.to_owned());
                paths.extend(entries(place)?);
            }
        }
        let sockets: Vec<_> = paths.iter().filter_map(|path| self.listed_socket(directory, path)).collect();
        if sockets.len() > MAX_SOCKETS {
            return Err(io::Error::other(format!("it has more than {MAX_SOCKETS} sockets that host_sockets lists")));
        }
        Ok(sockets)
    }

    /// `None`: there is no socket, or its name leads to it by links.
    fn listed_socket(&self, directory: &Path, path: &Path) -> Option<ListedSocket> {
        let socket = Resolved::open(path).ok()?;
        let is_meant = socket.path == path && socket.is_socket().ok()? && self.allows_socket(&socket);
        let name = path.strip_prefix(directory).ok()?.to_owned();
        is_meant.then_some(ListedSocket { name, socket })
    }
}

/// The paths in a directory; none of anything else.
fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::NotFound) => {
            return Ok(Vec::new());
        }
        entries => entries?,
    };
    entries.take(MAX_ENTRIES).map(|entry| entry.map(|entry| entry.path())).collect()
}
