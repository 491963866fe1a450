//! `Start`: runs a created container's command, or a process that `Exec` added.

use super::container::{Container, Process};
use super::exit;
use super::pod::Pod;
use super::process::{Change, Question};
use super::vm::MicroVm;
use crate::error::TaskError;
use agent_protocol::stream::{Channel, Hello};
use containerd_shim_protos::api::{StartRequest, StartResponse};
use containerd_shim_protos::events::task::{TaskExecStarted, TaskStart};
use containerd_shim_protos::topics::{TASK_EXEC_STARTED_EVENT_TOPIC, TASK_START_EVENT_TOPIC};
use std::sync::Arc;

pub async fn start(pod: Arc<Pod>, request: StartRequest) -> Result<StartResponse, TaskError> {
    let (container, process) = pod.process(&request.id, &request.exec_id)?;
    let vm = pod.vm()?;
    if process.exec.is_some() {
        container.init.allows(Question::Join)?;
    }
    process.change(Change::Start)?;
    if let Err(error) = run(&pod, &*vm, &container, &process).await {
        if process.exec.is_some() {
            process.close_stdio();
        }
        process.change(Change::StartFailed)?;
        return Err(error);
    }
    // The event first: from the change on, the exit may be told.
    publish(&pod, &container, &process);
    process.change(Change::Started)?;
    if process.exec.is_some() {
        exit::watch(&pod, &vm, &container, &process);
    }
    Ok(StartResponse { pid: container.pid, ..Default::default() })
}

async fn run(pod: &Pod, vm: &dyn MicroVm, container: &Container, process: &Process) -> Result<(), TaskError> {
    if container.is_sandbox {
        return Ok(());
    }
    if let Some(exec) = &process.exec {
        let opened = process.stdio.open(&pod.namespace, &container.id)?;
        let hello =
            Hello { container_id: container.id.to_string(), exec_id: exec.to_string(), channel: Channel::Stdout };
        let copies = opened.connect(&hello, |hello| async move { vm.open_stream(&hello).await }).await?;
        process.set_copies(copies);
    }
    process.begin_input()?;
    vm.agent().start(&process.request()).await?;
    Ok(())
}

fn publish(pod: &Pod, container: &Container, process: &Process) {
    let container_id = container.id.to_string();
    match &process.exec {
        None => {
            let event = TaskStart { container_id, pid: container.pid, ..Default::default() };
            pod.events.publish(TASK_START_EVENT_TOPIC, &event);
        }
        Some(exec) => {
            let event =
                TaskExecStarted { container_id, exec_id: exec.to_string(), pid: container.pid, ..Default::default() };
            pod.events.publish(TASK_EXEC_STARTED_EVENT_TOPIC, &event);
        }
    }
}
