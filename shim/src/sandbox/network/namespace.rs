//! Work inside a network namespace.

use super::NetworkError;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Runs `work` on a thread that is in the namespace and ends with it: no other thread of the shim ever leaves the node's.
pub fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> Result<T, NetworkError> + Send) -> Result<T, NetworkError> {
    let namespace = open(netns)?;
    let enter = move || {
        let not_one = |_| NetworkError::NotANamespace { path: netns.to_owned() };
        setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(not_one)?;
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, enter);
        let thread = thread.map_err(NetworkError::system("start", "a thread"))?;
        let ended = |_| NetworkError::system("finish", "the pod's network")(io::Error::other("its thread panicked"));
        thread.join().map_err(ended)?
    })
}

fn open(netns: &Path) -> Result<File, NetworkError> {
    let failed = |error| NetworkError::NoNamespace { path: netns.to_owned(), error };
    // Whatever the path leads to, opening it must not block.
    let flags = (OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits();
    let file = File::options().read(true).custom_flags(flags).open(netns).map_err(failed)?;
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let node = std::fs::metadata("/proc/self/ns/net").map(identity).map_err(failed)?;
    if file.metadata().map(identity).map_err(failed)? == node {
        return Err(NetworkError::NodesOwn { path: netns.to_owned() });
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(path: &Path) -> String {
        inside(path, || Ok(())).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_network_namespace_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        let sentence = format!("network namespace {} cannot be opened: No such file or directory", path.display());
        assert!(refused(&path).starts_with(&sentence));
        std::fs::write(&path, "").unwrap();
        assert_eq!(refused(&path), format!("{} is not a network namespace", path.display()));
        assert_eq!(refused(Path::new("/proc/self/ns/ipc")), "/proc/self/ns/ipc is not a network namespace");
    }

    #[test]
    fn the_nodes_own_network_is_refused() {
        assert!(refused(Path::new("/proc/self/ns/net")).starts_with("a microVM cannot share the node's network"));
    }
}
