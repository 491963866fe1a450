//! containerd's sandbox service, for `sandboxer = "shim"`: which verb is where, and nothing else.
//!
//! The pod sandbox then has no container of its own: no bundle, no root filesystem, no task. Its members come through the
//! task service as ever.

mod config;
mod create;
mod files;
mod life;
mod platform;
mod shutdown;
mod start;
mod status;
mod stop;
mod wait;

use crate::error::TaskError;
use crate::identifier::Identifier;
use crate::task::{Pod, to_the_end, told};
use async_trait::async_trait;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api as api;
use containerd_shim_protos::sandbox_async::{Sandbox, create_sandbox};
use life::Life;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::watch;
use ttrpc::r#async::{Service, TtrpcContext};

/// The sandbox service of one pod. `options` are the runtime options: only `start` is given them.
pub fn services(pod: &Arc<Pod>, options: Any) -> HashMap<String, Service> {
    let sandbox = PodSandbox { pod: pod.clone(), options, life: watch::Sender::default(), change: Default::default() };
    create_sandbox(Arc::new(SandboxService(Arc::new(sandbox))))
}

/// The pod as the sandbox service knows it.
#[derive(Debug)]
struct PodSandbox {
    pod: Arc<Pod>,
    options: Any,
    life: watch::Sender<Life>,
    /// Held by whoever starts or stops it: one after the other.
    change: tokio::sync::Mutex<()>,
}

impl PodSandbox {
    /// Errors unless the sandbox is this one and was created.
    fn named(&self, id: &str) -> Result<(), TaskError> {
        let id: Identifier = id.parse()?;
        if id != self.pod.id || matches!(*self.life.borrow(), Life::Absent) {
            return Err(TaskError::NoSandbox(id));
        }
        Ok(())
    }
}

struct SandboxService(Arc<PodSandbox>);

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::CreateSandboxRequest,
    ) -> ttrpc::Result<api::CreateSandboxResponse> {
        told("create_sandbox", create::create(&self.0, &request))
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StartSandboxRequest,
    ) -> ttrpc::Result<api::StartSandboxResponse> {
        to_the_end("start_sandbox", start::start(self.0.clone(), request)).await
    }

    async fn platform(&self, _: &TtrpcContext, request: api::PlatformRequest) -> ttrpc::Result<api::PlatformResponse> {
        told("platform", platform::platform(&self.0, &request))
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StopSandboxRequest,
    ) -> ttrpc::Result<api::StopSandboxResponse> {
        to_the_end("stop_sandbox", stop::stop(self.0.clone(), request)).await
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::WaitSandboxRequest,
    ) -> ttrpc::Result<api::WaitSandboxResponse> {
        told("wait_sandbox", wait::wait(&self.0, &request).await)
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: api::SandboxStatusRequest,
    ) -> ttrpc::Result<api::SandboxStatusResponse> {
        told("sandbox_status", status::status(&self.0, &request))
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, request: api::PingRequest) -> ttrpc::Result<api::PingResponse> {
        told("ping_sandbox", self.0.named(&request.sandbox_id).map(|()| api::PingResponse::new()))
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::ShutdownSandboxRequest,
    ) -> ttrpc::Result<api::ShutdownSandboxResponse> {
        to_the_end("shutdown_sandbox", shutdown::shutdown(self.0.clone(), request)).await
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        _: api::SandboxMetricsRequest,
    ) -> ttrpc::Result<api::SandboxMetricsResponse> {
        // kubelet's figures of a pod are those of its cgroup on the node, where the microVM is.
        told("sandbox_metrics", Err(TaskError::Unsupported("sandbox_metrics")))
    }
}

#[cfg(test)]
mod tests;
