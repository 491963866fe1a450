//! The pod's socket: where it is, and which process serves it.

use crate::identifier::Identifier;
use sha2::{Digest, Sha256};
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// containerd's conventional place.
pub const DIRECTORY: &str = "/run/containerd/s";

/// Path of a pod's socket. The same for every caller that names the same pod, so that members find it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketPath(PathBuf);

/// Who serves a socket.
#[derive(Debug)]
pub enum Claim {
    /// Nobody did: the caller is to serve this listener.
    Bound(UnixListener),
    /// A shim answers there already.
    Served,
}

impl SocketPath {
    pub fn new(directory: &Path, address: &str, namespace: &Identifier, pod: &Identifier) -> Self {
        let name = format!("{}/{namespace}/{pod}", address.trim_end_matches('/'));
        let digest = Sha256::digest(name.as_bytes());
        let hexadecimal: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Self(directory.join(hexadecimal))
    }

    /// The opposite of [`Self::url`].
    pub fn from_url(url: &str) -> Option<Self> {
        url.strip_prefix("unix://").filter(|path| path.starts_with('/')).map(|path| Self(path.into()))
    }

    /// As containerd is told.
    pub fn url(&self) -> String {
        format!("unix://{}", self.0.display())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Whether a live process accepts connections.
    pub fn is_served(&self) -> bool {
        UnixStream::connect(&self.0).is_ok()
    }

    /// Binds the socket, in place of one that a dead shim left.
    pub fn claim(&self) -> io::Result<Claim> {
        if let Some(directory) = self.0.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let listener = match UnixListener::bind(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if self.is_served() {
                    return Ok(Claim::Served);
                }
                std::fs::remove_file(&self.0)?;
                UnixListener::bind(&self.0)?
            }
            result => result?,
        };
        std::fs::set_permissions(&self.0, Permissions::from_mode(0o600))?;
        Ok(Claim::Bound(listener))
    }

    /// Removes the socket unless a live process serves it.
    pub fn remove_stale(&self) {
        if !self.is_served() {
            // Already gone is the usual case.
            let _ = std::fs::remove_file(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(directory: &Path) -> SocketPath {
        SocketPath::new(directory, "/run/c.sock", &"default".parse().unwrap(), &"web".parse().unwrap())
    }

    #[test]
    fn the_path_follows_containerds_convention() {
        let path = socket(Path::new(DIRECTORY));
        // sha256 of "/run/c.sock/default/web"
        let digest = Sha256::digest(b"/run/c.sock/default/web");
        assert!(path.url().starts_with(&format!("unix:///run/containerd/s/{:02x}{:02x}", digest[0], digest[1])));
        assert!(path.path().as_os_str().len() < 108, "longer than a socket's path may be");
        assert_eq!(SocketPath::from_url(&path.url()), Some(path));
    }

    #[test]
    fn a_live_socket_is_shared_and_a_dead_one_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let socket = socket(directory.path());
        let Claim::Bound(listener) = socket.claim().unwrap() else { panic!("nobody served it") };
        assert!(matches!(socket.claim().unwrap(), Claim::Served));
        drop(listener);
        assert!(matches!(socket.claim().unwrap(), Claim::Bound(_)));
        socket.remove_stale();
        assert!(!socket.path().exists());
    }
}
