//! `Start`: runs a created container's command, or a process that `Exec` added.

use super::container::{Container, Process};
use super::exit;
use super::kill::SIGKILL;
use super::pod::Pod;
use super::process::{Change, Question};
use super::vm::MicroVm;
use crate::error::TaskError;
use crate::identifier::Identifier;
use crate::sandbox::AgentError;
use crate::trace;
use agent_protocol::agent::SignalRequest;
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
    let result = if container.is_sandbox {
        Ok(())
    } else if let Some(exec) = &process.exec {
        start_added(&pod, &vm, &container, &process, exec).await
    } else {
        start_first(&*vm, &process).await
    };
    if let Err(error) = result {
        process.change(Change::StartFailed)?;
        return Err(error);
    }
    // The event first: from the change on, the exit may be told.
    publish(&pod, &container, &process);
    process.change(Change::Started)?;
    Ok(StartResponse { pid: container.pid, ..Default::default() })
}

async fn start_first(vm: &dyn MicroVm, process: &Process) -> Result<(), TaskError> {
    let starting = trace::container_span(process.container.as_str(), "start");
    process.begin_input()?;
    vm.agent().start(&process.request()).await?;
    drop(starting);
    trace::save();
    Ok(())
}

/// One journey to the guest for all of it, since `exec` is a hot path: the guest keeps the streams and the exit for
/// whoever comes, early or late.
async fn start_added(
    pod: &Arc<Pod>,
    vm: &Arc<dyn MicroVm>,
    container: &Arc<Container>,
    process: &Arc<Process>,
    exec: &Identifier,
) -> Result<(), TaskError> {
    let opened = process.stdio.open(&pod.namespace, &container.id)?;
    let hello = Hello { container_id: container.id.to_string(), exec_id: exec.to_string(), channel: Channel::Stdout };
    let streams = async {
        let copies = opened.connect(&hello, |hello| async move { vm.open_stream(&hello).await }).await?;
        process.set_copies(copies);
        process.begin_input()?;
        Ok(())
    };
    let request = process.request();
    let watch = exit::watch(pod, vm, container, process);
    let (streams, started) = tokio::join!(streams, vm.agent().start(&request));
    let refused = matches!(started, Err(AgentError::Refused { .. }));
    let result = started.map_err(TaskError::from).and(streams);
    if result.is_err() {
        // What did not start has no exit to tell, though the guest has one for it.
        watch.abort();
        process.close_stdio();
        if !refused {
            give_up(&**vm, process).await;
        }
    }
    result
}

/// Ends a process that may run although its start failed.
async fn give_up(vm: &dyn MicroVm, process: &Process) {
    let signal = SignalRequest {
        container_id: process.container.to_string(),
        exec_id: process.exec_id().to_owned(),
        signal: SIGKILL,
        ..Default::default()
    };
    // It may not run after all, or the guest be gone.
    let _ = vm.agent().signal(&signal).await;
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
