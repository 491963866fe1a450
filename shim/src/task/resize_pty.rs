//! `ResizePty`: the client's terminal has a new size.

use super::pod::Pod;
use super::process::Question;
use crate::error::TaskError;
use agent_protocol::agent::ResizeTerminalRequest;
use containerd_shim_protos::api::ResizePtyRequest;
use containerd_shim_protos::types::empty::Empty;
use std::sync::Arc;

pub async fn resize_pty(pod: Arc<Pod>, request: ResizePtyRequest) -> Result<Empty, TaskError> {
    let (container, process) = pod.process(&request.id, &request.exec_id)?;
    container.in_use()?;
    process.allows(Question::Use)?;
    if !process.stdio.terminal {
        return Err(TaskError::Invalid(format!("{process} has no terminal")));
    }
    let resize = ResizeTerminalRequest {
        container_id: container.id.to_string(),
        exec_id: process.exec_id().to_owned(),
        columns: request.width,
        rows: request.height,
        ..Default::default()
    };
    pod.vm()?.agent().resize_terminal(&resize).await?;
    Ok(Empty::new())
}
