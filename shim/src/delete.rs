//! `delete`: removes what a container's shim left, should it have died. containerd also runs this after every
//! regular end, and for every member of a pod: what was recorded under the container's own id is removed, which for a
//! member is nothing.

use crate::args::{ArgumentError, Arguments};
use crate::clock;
use crate::sandbox::{self, SandboxError};
use crate::start::ADDRESS_FILE;
use crate::start::socket::SocketPath;
use crate::task::process::Exit;
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::Message;
use std::path::Path;

#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// Returns what goes to standard output.
pub fn delete(arguments: &Arguments, bundle: &Path) -> Result<Vec<u8>, DeleteError> {
    let (namespace, id) = (arguments.namespace()?, arguments.id()?);
    sandbox::cleanup(namespace, id)?;
    // The pod's socket: for a member, only removed when the pod's shim is dead.
    let address = std::fs::read_to_string(bundle.join(ADDRESS_FILE)).unwrap_or_default();
    if let Some(socket) = SocketPath::from_url(&address) {
        socket.remove_stale();
    }
    let exit = Exit::now(Exit::KILLED);
    let response = DeleteResponse {
        exit_status: exit.status,
        exited_at: Some(clock::timestamp(exit.at)).into(),
        ..Default::default()
    };
    Ok(response.write_to_bytes().expect("a message of two small fields"))
}
