//! Notices how processes end, and tells it in the order that containerd needs: output and termination log first, then
//! the exits of added processes, then that of the container's first process; never before the start was told.

use super::container::{Container, Process};
use super::pod::Pod;
use super::process::{Change, Exit, Phase};
use super::vm::MicroVm;
use crate::clock;
use crate::sandbox::AgentError;
use crate::stdio::Awaited;
use agent_protocol::agent::WaitResponse;
use containerd_shim_protos::events::task::TaskExit;
use containerd_shim_protos::topics::TASK_EXIT_EVENT_TOPIC;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};

/// For output to reach the node after its process ended.
const DRAIN: Duration = Duration::from_secs(10);

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
        let end = tokio::select! {
            end = end(&*vm, &container, &process) => end,
            // Told by someone else.
            _ = process.ended() => return,
        };
        report(&pod, &*vm, &container, &process, end).await;
    });
    task.abort_handle()
}

/// How a process ended, and which of its output comes before the news.
struct End {
    exit: Exit,
    awaited: Awaited,
    /// What the guest says was written. Nothing that is known for a process that was lost.
    written: Awaited,
}

impl End {
    /// Lost: what is left of the output ends by itself.
    fn killed() -> Self {
        Self { exit: Exit::now(Exit::KILLED), awaited: Awaited::END, written: Awaited::NOTHING }
    }

    /// A container's first process takes all others with it, so that its output ends. An added one may leave children
    /// that hold its output open for good: what it had written itself is what counts. A terminal ends with its session.
    fn told(process: &Process, answer: &WaitResponse) -> Self {
        let written = Awaited { stdout: answer.stdout_bytes, stderr: answer.stderr_bytes };
        let awaited = if process.exec.is_none() || process.stdio.terminal { Awaited::END } else { written };
        // The node's clock: the guest's says nothing here.
        Self { exit: Exit::now(answer.exit_status.min(255)), awaited, written }
    }
}

/// Returns how the process ended, or that it was lost with its microVM.
async fn end(vm: &dyn MicroVm, container: &Container, process: &Process) -> End {
    if container.is_sandbox {
        gone(vm).await;
        return End::killed();
    }
    let request = process.request();
    tokio::select! {
        biased;
        answer = vm.agent().wait(&request) => match answer {
            Ok(answer) => End::told(process, &answer),
            // Forgotten by the guest: deleted before it ran, or the agent lost it.
            Err(AgentError::Refused { text, .. }) => {
                tracing::debug!(container = %container.id, error = text, "the guest knows no such process");
                End::killed()
            }
            Err(error) => {
                if timeout(NEWS_LIMIT, gone(vm)).await.is_err() {
                    tracing::error!(container = %container.id, %error, "the agent can't be waited for");
                    vm.kill("the agent stopped answering");
                    let _ = timeout(NEWS_LIMIT, gone(vm)).await;
                }
                End::killed()
            }
        },
        () = gone(vm) => End::killed(),
    }
}

/// Returns when the microVM is gone.
async fn gone(vm: &dyn MicroVm) {
    // A sender that was dropped means the same.
    let _ = vm.stopped().wait_for(Option::is_some).await;
}

async fn report(pod: &Pod, vm: &dyn MicroVm, container: &Container, process: &Process, end: End) {
    // An added process has its streams when its start is over.
    process.settled().await;
    let execs_limit = Instant::now() + EXECS_LIMIT;
    // kubelet reads the termination log when it learns of the end.
    let take_back = async {
        if process.exec.is_none() && !container.is_sandbox && vm.stopped().borrow().is_none() {
            vm.take_back(&container.id).await;
        }
    };
    tokio::join!(drain(process, &end), take_back);
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
    tell(pod, container, process, end.exit);
}

async fn drain(process: &Process, end: &End) {
    let Some(copies) = process.copies() else { return };
    copies.stop_input();
    let (container, exec) = (&process.container, process.exec_id());
    if copies.drained(end.awaited, DRAIN).await {
        let lost = copies.missing(end.written);
        if lost > 0 {
            tracing::error!(%container, exec, lost, "output ended before all of it had arrived");
        }
        return;
    }
    if process.exec.is_some() {
        // What stays open goes on until the process is deleted.
        tracing::warn!(%container, exec, "output did not arrive or is not read: the exit is told before it");
    } else {
        tracing::warn!(%container, "output is not read: what is left of it is dropped");
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
