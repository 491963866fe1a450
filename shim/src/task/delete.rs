//! `Delete`: forgets a process that has ended or never ran; with a container's first process, the container; with the
//! container that owns it, the microVM.

use super::container::{Container, Process};
use super::exit;
use super::pod::Pod;
use super::process::{Change, Exit, Question};
use super::vm::MicroVm;
use crate::clock;
use crate::error::TaskError;
use crate::sandbox::AgentError;
use containerd_shim_protos::api::{DeleteRequest, DeleteResponse};
use containerd_shim_protos::events::task::TaskDelete;
use containerd_shim_protos::topics::TASK_DELETE_EVENT_TOPIC;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use ttrpc::Code;

/// For the guest to unmount and to forget. Kubernetes gives the whole call 10 s.
const GUEST_LIMIT: Duration = Duration::from_secs(5);

pub async fn delete(pod: Arc<Pod>, request: DeleteRequest) -> Result<DeleteResponse, TaskError> {
    let (container, process) = pod.process_to_delete(&request.id, &request.exec_id)?;
    process.allows(Question::Delete)?;
    let mut deleted = process.deletion().await;
    if *deleted {
        return Err(match &process.exec {
            None => TaskError::NoContainer(container.id.clone()),
            Some(exec) => TaskError::NoProcess { container: container.id.clone(), exec: exec.clone() },
        });
    }
    if process.exec.is_some() {
        delete_exec(&pod, &container, &process).await;
    } else {
        delete_container(&pod, &container).await;
    }
    let exit = process.phase().exit().unwrap_or_else(|| Exit::now(Exit::KILLED));
    let response = DeleteResponse {
        pid: container.pid,
        exit_status: exit.status,
        exited_at: Some(clock::timestamp(exit.at)).into(),
        ..Default::default()
    };
    if process.exec.is_none() {
        let event = TaskDelete {
            container_id: container.id.to_string(),
            pid: response.pid,
            exit_status: response.exit_status,
            exited_at: response.exited_at.clone(),
            ..Default::default()
        };
        pod.events.publish(TASK_DELETE_EVENT_TOPIC, &event);
        pod.remove(&container.id);
    }
    *deleted = true;
    Ok(response)
}

async fn delete_exec(pod: &Pod, container: &Container, process: &Process) {
    if let Ok(vm) = pod.vm() {
        forget(&*vm, process).await;
    }
    // One that never ran has no exit to tell, but maybe waiters.
    let _ = process.change(Change::Exited(Exit::now(0)));
    process.close_stdio();
    if let Some(exec) = &process.exec {
        container.remove(exec);
    }
}

async fn delete_container(pod: &Pod, container: &Container) {
    let init = &container.init;
    match pod.vm() {
        Ok(vm) if !container.is_sandbox => {
            forget(&*vm, init).await;
            // What the owner has goes with the microVM, at once, but for what shall be kept.
            let detached =
                if container.owns_vm { vm.write_back(&container.id).await } else { vm.detach(&container.id).await };
            if let Err(error) = detached {
                tracing::error!(container = %container.id, %error, "container is not detached");
            }
        }
        _ => {}
    }
    // One that never ran was killed by this.
    exit::tell(pod, container, init, Exit::now(Exit::KILLED));
    for process in container.execs().iter().chain([init]) {
        process.close_stdio();
    }
    if container.owns_vm {
        pod.destroy_vm().await;
    }
    tracing::info!(container = %container.id, "container deleted");
}

/// Has the guest forget a process. A guest that does not answer changes nothing for containerd.
async fn forget(vm: &dyn MicroVm, process: &Process) {
    if vm.stopped().borrow().is_some() {
        return;
    }
    match timeout(GUEST_LIMIT, vm.agent().delete(&process.request())).await {
        Ok(Ok(_)) | Ok(Err(AgentError::Refused { code: Code::NOT_FOUND, .. })) => {}
        Ok(Err(error)) => tracing::warn!(container = %process.container, %error, "the guest did not delete a process"),
        Err(_) => {
            tracing::warn!(container = %process.container, "the guest did not delete a process in {GUEST_LIMIT:?}")
        }
    }
}
