//! `start`: makes sure that a shim serves the container, and answers with the address of its socket.
//!
//! One shim serves a pod. The first `start` binds the pod's socket and leaves a daemon behind that inherits the
//! listener, so that containerd can connect before the daemon has even begun; for further containers of the pod
//! only the address is answered. Whatever can be refused here is: there is no daemon yet that could be left over.

mod daemon;
pub mod options;
mod protocol;
pub mod socket;

use crate::args::{ArgumentError, Arguments};
use crate::bundle::{self, BundleError, Role};
use crate::identifier::Identifier;
use crate::options::{OptionsError, RuntimeOptions};
use crate::trace;
use bulkhead_config::ConfigError;
use containerd_shim_protos::protobuf;
use protocol::Input;
use socket::{Claim, SocketPath};
use std::io;
use std::path::{Path, PathBuf};

/// Longest standard input, in bytes.
pub const MAX_INPUT: u64 = 1024 * 1024;

/// Holds the shim's address in every bundle: containerd reads it when it restarts.
pub const ADDRESS_FILE: &str = "address";

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    #[error("standard input is neither runtime options nor bootstrap parameters")]
    Input(#[source] protobuf::Error),
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error("the pod {0} has no running shim")]
    PodGone(Identifier),
    #[error("cannot listen on {path}")]
    Listen { path: PathBuf, source: io::Error },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot start the shim's daemon")]
    Daemon(#[source] io::Error),
}

/// Returns what goes to standard output.
pub fn start(arguments: &Arguments, bundle: &Path, input: &[u8]) -> Result<Vec<u8>, StartError> {
    let began = trace::now();
    let (namespace, id) = (arguments.namespace()?, arguments.id()?);
    let input = Input::parse(input, id).map_err(StartError::Input)?;
    // Without a specification it is a pod sandbox that is no container: containerd 2.x does so with `sandboxer = "shim"`.
    let spec = bundle::read_spec(bundle)?;
    let role = spec.as_ref().map_or(Ok(Role::Sandbox), bundle::role)?;
    let reply = input.reply(spec.is_some());
    let directory = input.socket_directory.as_deref().unwrap_or(Path::new(socket::DIRECTORY));

    let socket = if let Role::Member { sandbox } = role {
        let socket = SocketPath::new(directory, &arguments.address, namespace, &sandbox);
        if !socket.is_served() {
            return Err(StartError::PodGone(sandbox));
        }
        socket
    } else {
        let traced = RuntimeOptions::from_any(&input.options)?.config()?.trace.then_some(began);
        let socket = SocketPath::new(directory, &arguments.address, namespace, id);
        if spec.is_none() {
            let failed = |source| StartError::Write { path: bundle.to_owned(), source };
            options::leave(bundle, &input.options).map_err(failed)?;
        }
        let failed = |source| StartError::Listen { path: socket.path().to_owned(), source };
        if let Claim::Bound(listener) = socket.claim().map_err(failed)? {
            let daemon = || daemon::leave_behind(arguments, bundle, listener, traced).map_err(StartError::Daemon);
            serve(&socket, bundle, daemon)?;
            return Ok(reply.encode(&socket.url()));
        }
        socket
    };
    write_address(bundle, &socket.url())?;
    Ok(reply.encode(&socket.url()))
}

/// Has the daemon serve a socket that was just bound. The daemon comes last: nobody would end it if something failed
/// after it.
fn serve(
    socket: &SocketPath,
    bundle: &Path,
    leave_behind: impl FnOnce() -> Result<(), StartError>,
) -> Result<(), StartError> {
    let result = write_address(bundle, &socket.url()).and_then(|()| leave_behind());
    if result.is_err() {
        for path in [socket.path(), &bundle.join(ADDRESS_FILE)] {
            // There may be none; the first error is the one to tell.
            let _ = std::fs::remove_file(path);
        }
    }
    result
}

/// Replaces the file at once: containerd may read it at any moment.
fn write_address(bundle: &Path, url: &str) -> Result<(), StartError> {
    let (path, new) = (bundle.join(ADDRESS_FILE), bundle.join(".address"));
    let failed = |source| StartError::Write { path: path.clone(), source };
    std::fs::write(&new, url).map_err(failed)?;
    std::fs::rename(&new, &path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimed(directory: &Path) -> (SocketPath, std::os::unix::net::UnixListener) {
        let socket = SocketPath::new(directory, "/c.sock", &"default".parse().unwrap(), &"web".parse().unwrap());
        let Claim::Bound(listener) = socket.claim().unwrap() else { panic!("nobody served it") };
        (socket, listener)
    }

    #[test]
    fn the_address_is_written_before_the_daemon_exists() {
        let directory = tempfile::tempdir().unwrap();
        let (socket, _listener) = claimed(directory.path());
        let address = directory.path().join(ADDRESS_FILE);
        serve(&socket, directory.path(), || {
            assert_eq!(std::fs::read_to_string(&address).unwrap(), socket.url());
            Ok(())
        })
        .unwrap();
        assert!(socket.path().exists());
    }

    #[test]
    fn a_start_that_fails_leaves_neither_daemon_nor_files() {
        let directory = tempfile::tempdir().unwrap();
        let (socket, _listener) = claimed(directory.path());
        let no_bundle = directory.path().join("none");
        let result = serve(&socket, &no_bundle, || panic!("there is a daemon and no address"));
        assert!(matches!(result, Err(StartError::Write { .. })));
        assert!(!socket.path().exists());

        let (socket, _listener) = claimed(directory.path());
        let result = serve(&socket, directory.path(), || Err(StartError::Daemon(io::ErrorKind::OutOfMemory.into())));
        assert!(matches!(result, Err(StartError::Daemon(_))));
        assert!(!socket.path().exists() && !directory.path().join(ADDRESS_FILE).exists());
    }
}
