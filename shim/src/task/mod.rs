//! containerd's task service: which verb is where, and nothing else.
//!
//! containerd gives up on a call when it dies or loses patience, and then the call's future is dropped, wherever
//! it is. So whatever changes something runs as a task of its own, and the call only waits for it.

mod close_io;
mod connect;
mod container;
mod create;
mod delete;
mod exec;
mod exit;
mod guest_events;
mod kill;
mod node_pid;
mod oom;
mod pause;
mod pids;
mod pod;
pub mod process;
mod resize_pty;
mod resume;
mod start;
mod state;
mod stats;
mod update;
pub mod vm;
mod wait;

pub use pod::Pod;

use crate::error::TaskError;
use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::{Task, create_task};
use containerd_shim_protos::types::empty::Empty;
use std::collections::HashMap;
use std::sync::Arc;
use ttrpc::r#async::{Service, TtrpcContext};

/// The services of one pod, by name.
pub fn services(pod: &Arc<Pod>) -> HashMap<String, Service> {
    // Version 2 is version 3 under another name.
    let mut services = HashMap::new();
    for version in ["v2", "v3"] {
        let task: Arc<dyn Task + Send + Sync> = Arc::new(TaskService { pod: pod.clone() });
        for (name, service) in create_task(task) {
            services.insert(name.replace(".v3.", &format!(".{version}.")), service);
        }
    }
    services
}

struct TaskService {
    pod: Arc<Pod>,
}

/// Waits for work that goes on when the waiting is given up.
pub async fn to_the_end<T: Send + 'static>(
    call: &'static str,
    work: impl Future<Output = Result<T, TaskError>> + Send + 'static,
) -> ttrpc::Result<T> {
    let result = tokio::spawn(work).await.unwrap_or(Err(TaskError::Panicked(call)));
    told(call, result)
}

/// An answer, or the error as containerd is to see it.
pub fn told<T>(call: &'static str, result: Result<T, TaskError>) -> ttrpc::Result<T> {
    result.map_err(|error| {
        tracing::debug!(call, error = &error as &dyn std::error::Error, "call failed");
        error.into()
    })
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        to_the_end("create", create::create(self.pod.clone(), request)).await
    }

    async fn start(&self, _: &TtrpcContext, request: api::StartRequest) -> ttrpc::Result<api::StartResponse> {
        to_the_end("start", start::start(self.pod.clone(), request)).await
    }

    async fn exec(&self, _: &TtrpcContext, request: api::ExecProcessRequest) -> ttrpc::Result<Empty> {
        to_the_end("exec", exec::exec(self.pod.clone(), request)).await
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> ttrpc::Result<Empty> {
        to_the_end("kill", kill::kill(self.pod.clone(), request)).await
    }

    async fn delete(&self, _: &TtrpcContext, request: api::DeleteRequest) -> ttrpc::Result<api::DeleteResponse> {
        to_the_end("delete", delete::delete(self.pod.clone(), request)).await
    }

    async fn pause(&self, _: &TtrpcContext, request: api::PauseRequest) -> ttrpc::Result<Empty> {
        to_the_end("pause", pause::pause(self.pod.clone(), request)).await
    }

    async fn resume(&self, _: &TtrpcContext, request: api::ResumeRequest) -> ttrpc::Result<Empty> {
        to_the_end("resume", resume::resume(self.pod.clone(), request)).await
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: api::ResizePtyRequest) -> ttrpc::Result<Empty> {
        to_the_end("resize_pty", resize_pty::resize_pty(self.pod.clone(), request)).await
    }

    async fn update(&self, _: &TtrpcContext, request: api::UpdateTaskRequest) -> ttrpc::Result<Empty> {
        to_the_end("update", update::update(self.pod.clone(), request)).await
    }

    async fn shutdown(&self, _: &TtrpcContext, _: api::ShutdownRequest) -> ttrpc::Result<Empty> {
        self.pod.shut_down();
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: api::CloseIORequest) -> ttrpc::Result<Empty> {
        told("close_io", close_io::close_io(&self.pod, &request))
    }

    async fn state(&self, _: &TtrpcContext, request: api::StateRequest) -> ttrpc::Result<api::StateResponse> {
        told("state", state::state(&self.pod, &request))
    }

    async fn wait(&self, _: &TtrpcContext, request: api::WaitRequest) -> ttrpc::Result<api::WaitResponse> {
        told("wait", wait::wait(&self.pod, &request).await)
    }

    async fn pids(&self, _: &TtrpcContext, request: api::PidsRequest) -> ttrpc::Result<api::PidsResponse> {
        told("pids", pids::pids(&self.pod, &request).await)
    }

    async fn stats(&self, _: &TtrpcContext, request: api::StatsRequest) -> ttrpc::Result<api::StatsResponse> {
        told("stats", stats::stats(&self.pod, &request).await)
    }

    async fn connect(&self, _: &TtrpcContext, request: api::ConnectRequest) -> ttrpc::Result<api::ConnectResponse> {
        Ok(connect::connect(&self.pod, &request))
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: api::CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        told("checkpoint", Err(TaskError::Unsupported("checkpoint")))
    }
}

#[cfg(test)]
pub(crate) mod tests;
