//! `State`: what a process is now, from the shim's memory alone.

use super::pod::Pod;
use super::process::Phase;
use crate::clock;
use crate::error::TaskError;
use containerd_shim_protos::api::{StateRequest, StateResponse, Status};

pub fn state(pod: &Pod, request: &StateRequest) -> Result<StateResponse, TaskError> {
    let (container, process) = pod.process(&request.id, &request.exec_id)?;
    let phase = process.phase();
    let status = match phase {
        Phase::Created | Phase::Starting => Status::CREATED,
        Phase::Running => Status::RUNNING,
        Phase::Paused => Status::PAUSED,
        Phase::Stopped(_) => Status::STOPPED,
    };
    let started = process.exec.is_none() || !matches!(phase, Phase::Created | Phase::Starting);
    Ok(StateResponse {
        id: container.id.to_string(),
        exec_id: process.exec_id().to_owned(),
        bundle: container.bundle.display().to_string(),
        pid: if started { container.pid } else { 0 },
        status: status.into(),
        stdin: process.stdio.stdin.clone(),
        stdout: process.stdio.stdout.clone(),
        stderr: process.stdio.stderr.clone(),
        terminal: process.stdio.terminal,
        exit_status: phase.exit().map_or(0, |exit| exit.status),
        exited_at: phase.exit().map(|exit| clock::timestamp(exit.at)).into(),
        ..Default::default()
    })
}
