//! `CloseIO`: the client has nothing more to say on stdin.

use super::pod::Pod;
use crate::error::TaskError;
use containerd_shim_protos::api::CloseIORequest;
use containerd_shim_protos::types::empty::Empty;

pub fn close_io(pod: &Pod, request: &CloseIORequest) -> Result<Empty, TaskError> {
    let (_, process) = pod.process(&request.id, &request.exec_id)?;
    // Outputs are not the client's to close.
    if request.stdin {
        process.close_stdin();
    }
    Ok(Empty::new())
}
