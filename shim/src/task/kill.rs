//! `Kill`: sends a signal. A guest in which a container outlives its SIGKILL loses its microVM, whatever it says.

use super::container::Process;
use super::exit;
use super::pod::Pod;
use super::process::{Exit, Phase, Question, Refusal};
use super::vm::MicroVm;
use crate::error::TaskError;
use crate::sandbox::AgentError;
use agent_protocol::agent::SignalRequest;
use containerd_shim_protos::api::KillRequest;
use containerd_shim_protos::types::empty::Empty;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

pub const SIGKILL: u32 = 9;

/// Linux's highest, `SIGRTMAX`.
const MAX_SIGNAL: u32 = 64;

/// For the guest to end a container that got SIGKILL. Telling the end has a bound of its own.
const DEATH_LIMIT: Duration = Duration::from_secs(10);

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
    let answer = vm.agent().signal(&signal).await;
    // A microVM is too much to lose for an added process: it goes with its container at the latest.
    if request.signal != SIGKILL || process.exec.is_some() {
        return Ok(answer.map(|_| Empty::new())?);
    }
    match answer {
        Err(AgentError::Deadline { .. } | AgentError::Broken { .. }) => {
            vm.kill("its guest did not answer a kill");
            Ok(Empty::new())
        }
        // The guest may say anything, and do nothing.
        answer => {
            tokio::spawn(enforce(vm, process));
            Ok(answer.map(|_| Empty::new())?)
        }
    }
}

/// Ends the microVM unless the process ends by itself.
async fn enforce(vm: Arc<dyn MicroVm>, process: Arc<Process>) {
    if timeout(DEATH_LIMIT + exit::TELL_LIMIT, process.ended()).await.is_err() {
        vm.kill("a container in it outlived SIGKILL");
    }
}
