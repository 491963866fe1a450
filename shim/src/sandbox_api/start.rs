//! `StartSandbox`: boots the microVM.

use super::life::{Booted, Life};
use super::{PodSandbox, api};
use crate::clock;
use crate::error::TaskError;
use crate::task::process::Exit;
use std::sync::Arc;
use std::time::SystemTime;

pub(super) async fn start(
    sandbox: Arc<PodSandbox>,
    request: api::StartSandboxRequest,
) -> Result<api::StartSandboxResponse, TaskError> {
    sandbox.named(&request.sandbox_id)?;
    let _whole = sandbox.change.lock().await;
    let Life::Created(prepared) = sandbox.life.borrow().clone() else {
        return Err(TaskError::SandboxStarted(sandbox.pod.id.clone()));
    };
    let vm = match sandbox.pod.boot(prepared.spec, &prepared.config).await {
        Ok(vm) => vm,
        Err(error) => {
            sandbox.life.send_if_modified(|life| life.stop(Exit::now(Exit::KILLED)));
            return Err(error.into());
        }
    };
    let booted = Booted { at: SystemTime::now(), pid: vm.vmm_pid() };
    sandbox.life.send_replace(Life::Ready(booted));
    let (watched, mut stopped) = (sandbox.clone(), vm.stopped());
    tokio::spawn(async move {
        // A sender that was dropped means the same.
        let _ = stopped.wait_for(Option::is_some).await;
        watched.life.send_if_modified(|life| life.stop(Exit::now(Exit::KILLED)));
    });
    tracing::info!(vmm = booted.pid, "pod sandbox started");
    Ok(api::StartSandboxResponse {
        pid: booted.pid,
        created_at: Some(clock::timestamp(booted.at)).into(),
        ..Default::default()
    })
}
