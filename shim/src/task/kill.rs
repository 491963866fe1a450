//! `Kill`: sends a signal. A guest that does not deliver SIGKILL loses its microVM.

use super::exit;
use super::pod::Pod;
use super::process::{Exit, Phase, Question, Refusal};
use crate::error::TaskError;
use crate::sandbox::AgentError;
use agent_protocol::agent::SignalRequest;
use containerd_shim_protos::api::KillRequest;
use containerd_shim_protos::types::empty::Empty;
use std::sync::Arc;

const SIGKILL: u32 = 9;

/// Linux's highest, `SIGRTMAX`.
const MAX_SIGNAL: u32 = 64;

pub async fn kill(pod: Arc<Pod>, request: KillRequest) -> Result<Empty, TaskError> {
    let (container, process) = pod.process(&request.id, &request.exec_id)?;
    if request.signal > MAX_SIGNAL {
        return Err(TaskError::Invalid(format!("{} is not a signal", request.signal)));
    }
    process.allows(Question::Signal)?;
    if process.exec.is_some() && process.phase() == Phase::Created {
        return Err(TaskError::Refused { process: process.to_string(), refusal: Refusal::NotRunning });
    }
    // Zero asks only whether there is a process.
    if request.signal == 0 {
        return Ok(Empty::new());
    }
    if container.is_sandbox {
        exit::tell(&pod, &container, &process, Exit::now(128 + request.signal));
        return Ok(Empty::new());
    }
    let vm = pod.vm()?;
    let signal = SignalRequest {
        container_id: container.id.to_string(),
        exec_id: process.exec_id().to_owned(),
        signal: request.signal,
        all: request.all,
        ..Default::default()
    };
    match vm.agent().signal(&signal).await {
        Err(AgentError::Deadline { .. } | AgentError::Broken { .. }) if request.signal == SIGKILL => {
            vm.kill("its guest did not answer a kill");
            Ok(Empty::new())
        }
        result => Ok(result.map(|_| Empty::new())?),
    }
}
