//! Notices how processes end, and tells it in the order that containerd needs: output first, then the exits of
//! added processes, then that of the container's first process; never before the start was told.

use super::container::{Container, Process};
use super::pod::Pod;
use super::process::{Change, Exit, Phase};
use super::vm::MicroVm;
use crate::clock;
use crate::sandbox::AgentError;
use containerd_shim_protos::events::task::TaskExit;
use containerd_shim_protos::topics::TASK_EXIT_EVENT_TOPIC;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};

/// For output to reach the node after its process ended.
const DRAIN: Duration = Duration::from_secs(10);

/// Without any output, for an added process: it may leave children that hold its output open for good. With a
/// container's first process all of them are gone. As long as a guest on an overloaded node may need to bring output
/// forward after its process ended: less has lost some.
const EXEC_QUIET: Duration = Duration::from_secs(8);

/// For the exits of added processes to be told after their container ended. Longer than `DRAIN`.
const EXECS_LIMIT: Duration = Duration::from_secs(12);

/// Between a broken connection to the guest and the news that the microVM is gone.
const NEWS_LIMIT: Duration = Duration::from_secs(1);

/// From the end of a container's first process until it is told.
pub const TELL_LIMIT: Duration = EXECS_LIMIT.saturating_add(Duration::from_secs(1));

/// Follows a process to its end, in the background. May begin before the start.
pub fn watch(pod: &Arc<Pod>, vm: &Arc<dyn MicroVm>, container: &Arc<Container>, process: &Arc<Process>) -> AbortHandle {
    let (pod, vm, container, process) = (pod.clone(), vm.clone(), container.clone(), process.clone());
    let task = tokio::spawn(async move {
        let exit = tokio::select! {
            exit = end(&*vm, &container, &process) => exit,
            // Told by someone else.
            _ = process.ended() => return,
        };
        report(&pod, &container, &process, exit).await;
    });
    task.abort_handle()
}

/// Returns how the process ended, or that it was lost with its microVM.
async fn end(vm: &dyn MicroVm, container: &Container, process: &Process) -> Exit {
    if container.is_sandbox {
        gone(vm).await;
        return Exit::now(Exit::KILLED);
    }
    let request = process.request();
    tokio::select! {
        biased;
        answer = vm.agent().wait(&request) => match answer {
            // The node's clock: the guest's says nothing here.
            Ok(answer) => Exit::now(answer.exit_status.min(255)),
            // Forgotten by the guest: deleted before it ran, or the agent lost it.
            Err(AgentError::Refused { text, .. }) => {
                tracing::debug!(container = %container.id, error = text, "the guest knows no such process");
                Exit::now(Exit::KILLED)
            }
            Err(error) => {
                if timeout(NEWS_LIMIT, gone(vm)).await.is_err() {
                    tracing::error!(container = %container.id, %error, "the agent can't be waited for");
                    vm.kill("the agent stopped answering");
                    let _ = timeout(NEWS_LIMIT, gone(vm)).await;
                }
                Exit::now(Exit::KILLED)
            }
        },
        () = gone(vm) => Exit::now(Exit::KILLED),
    }
}

/// Returns when the microVM is gone.
async fn gone(vm: &dyn MicroVm) {
    // A sender that was dropped means the same.
    let _ = vm.stopped().wait_for(Option::is_some).await;
}

async fn report(pod: &Pod, container: &Container, process: &Process, exit: Exit) {
    // An added process has its streams when its start is over.
    process.settled().await;
    let execs_limit = Instant::now() + EXECS_LIMIT;
    drain(process).await;
    if process.exec.is_none() {
        let execs = container.execs();
        let running = || execs.iter().filter(|exec| matches!(exec.phase(), Phase::Starting | Phase::Running));
        let all_told = async {
            for exec in running() {
                exec.ended().await;
            }
        };
        if timeout_at(execs_limit, all_told).await.is_err() {
            for exec in running() {
                tell(pod, container, exec, Exit::now(Exit::KILLED));
            }
        }
    }
    process.settled().await;
    tell(pod, container, process, exit);
}

async fn drain(process: &Process) {
    let Some(copies) = process.copies() else { return };
    copies.stop_input();
    if process.exec.is_some() {
        // What stays open goes on until the process is deleted.
        copies.drained_while_moving(EXEC_QUIET, DRAIN).await;
    } else if !copies.drained(DRAIN).await {
        tracing::warn!(container = %process.container, "output is not read: what is left of it is dropped");
        // Clients wait for the end of the output before they delete.
        copies.stop();
    }
}

/// Makes the exit known, once: to waiters and to containerd.
pub fn tell(pod: &Pod, container: &Container, process: &Process, exit: Exit) {
    if process.change(Change::Exited(exit)).is_err() {
        return;
    }
    tracing::debug!(container = %container.id, exec = process.exec_id(), status = exit.status, "process ended");
    let event = TaskExit {
        container_id: container.id.to_string(),
        id: process.exec.as_ref().unwrap_or(&container.id).to_string(),
        pid: container.pid,
        exit_status: exit.status,
        exited_at: Some(clock::timestamp(exit.at)).into(),
        ..Default::default()
    };
    pod.events.publish(TASK_EXIT_EVENT_TOPIC, &event);
}
