//! `Wait`: answers when a process has ended. May be called before it starts, and by many.

use super::pod::Pod;
use crate::clock;
use crate::error::TaskError;
use containerd_shim_protos::api::{WaitRequest, WaitResponse};

pub async fn wait(pod: &Pod, request: &WaitRequest) -> Result<WaitResponse, TaskError> {
    let (_, process) = pod.process(&request.id, &request.exec_id)?;
    let exit = process.ended().await;
    Ok(WaitResponse {
        exit_status: exit.status,
        exited_at: Some(clock::timestamp(exit.at)).into(),
        ..Default::default()
    })
}
