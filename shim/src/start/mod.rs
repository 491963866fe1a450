//! `start`: makes sure that a shim serves the container, and answers with the address of its socket.
//!
//! One shim serves a pod. The first `start` binds the pod's socket and leaves a daemon behind that inherits the
//! listener, so that containerd can connect before the daemon has even begun; for further containers of the pod
//! only the address is answered. Whatever can be refused here is: there is no daemon yet that could be left over.

mod daemon;
mod protocol;
pub mod socket;

use crate::args::{ArgumentError, Arguments};
use crate::bundle::{self, BundleError, Role};
use crate::identifier::Identifier;
use crate::options::{OptionsError, RuntimeOptions};
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
    /// What containerd 2.x does with `sandboxer = "shim"`.
    #[error("there is no config.json: sandboxer = \"shim\" is not supported, use podsandbox")]
    SandboxController,
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
    let (namespace, id) = (arguments.namespace()?, arguments.id()?);
    let input = Input::parse(input, id).map_err(StartError::Input)?;
    let spec = bundle::read_spec(bundle)?.ok_or(StartError::SandboxController)?;
    let role = bundle::role(&spec)?;
    let directory = input.socket_directory.as_deref().unwrap_or(Path::new(socket::DIRECTORY));

    let socket = if let Role::Member { sandbox } = role {
        let socket = SocketPath::new(directory, &arguments.address, namespace, &sandbox);
        if !socket.is_served() {
            return Err(StartError::PodGone(sandbox));
        }
        socket
    } else {
        RuntimeOptions::from_any(&input.options)?.config()?;
        let socket = SocketPath::new(directory, &arguments.address, namespace, id);
        let failed = |source| StartError::Listen { path: socket.path().to_owned(), source };
        if let Claim::Bound(listener) = socket.claim().map_err(failed)?
            && let Err(error) = daemon::leave_behind(arguments, bundle, listener)
        {
            let _ = std::fs::remove_file(socket.path());
            return Err(StartError::Daemon(error));
        }
        socket
    };
    write_address(bundle, &socket.url())?;
    Ok(input.reply().encode(&socket.url()))
}

/// Replaces the file at once: containerd may read it at any moment.
fn write_address(bundle: &Path, url: &str) -> Result<(), StartError> {
    let (path, new) = (bundle.join(ADDRESS_FILE), bundle.join(".address"));
    let failed = |source| StartError::Write { path: path.clone(), source };
    std::fs::write(&new, url).map_err(failed)?;
    std::fs::rename(&new, &path).map_err(failed)
}
