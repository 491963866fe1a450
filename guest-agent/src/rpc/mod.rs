//! The agent's service. This file only dispatches: a verb, or a few that belong together, is a file.
//!
//! ttrpc drops a call's future when the shim goes away or its deadline passes. What changes something therefore runs
//! as a task of its own: it is never left half-done.

mod accounting;
mod add_memory;
mod adjust_clock;
mod configure;
mod configure_network;
mod create;
mod delete;
mod devices;
mod events;
mod freeze;
mod put_files;
mod resize_terminal;
mod shutdown;
mod signal;
mod start;
mod take_file;
mod update;
mod volumes;
mod wait;

use crate::agent::Agent;
use crate::error::Error;
use agent_protocol::agent::{
    AddMemoryRequest, AdjustClockRequest, AdjustClockResponse, ConfigureNetworkRequest, ConfigureRequest,
    ConfigureResponse, ContainerRequest, CreateContainerRequest, CreateContainerResponse, CreateProcessRequest, Empty,
    Event, ListProcessesResponse, PrepareVolumeRequest, ProcessRequest, PutFilesRequest, ReleaseDeviceRequest,
    ResizeTerminalRequest, SignalRequest, StartResponse, StatsResponse, TakeFileRequest, TakeFileResponse,
    UpdateRequest, VolumeRequest, WaitResponse,
};
use async_trait::async_trait;
use std::sync::Arc;
use ttrpc::r#async::TtrpcContext;

#[derive(Clone, Debug)]
pub struct Service {
    agent: Arc<Agent>,
}

impl Service {
    pub fn new(agent: Arc<Agent>) -> Self {
        Self { agent }
    }

    /// Runs `work` to its end, whether or not anybody still waits for the answer.
    async fn finish<F, T>(&self, work: impl FnOnce(Arc<Agent>) -> F) -> ttrpc::Result<T>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
        T: Send + 'static,
    {
        let task = tokio::spawn(work(Arc::clone(&self.agent)));
        task.await.map_err(Error::system("finish", "the call")).flatten().map_err(Into::into)
    }
}

#[async_trait]
impl agent_protocol::agent_ttrpc::Agent for Service {
    async fn configure(&self, _: &TtrpcContext, request: ConfigureRequest) -> ttrpc::Result<ConfigureResponse> {
        Ok(configure::configure(&self.agent, &request)?)
    }

    async fn configure_network(&self, _: &TtrpcContext, request: ConfigureNetworkRequest) -> ttrpc::Result<Empty> {
        self.finish(|agent| configure_network::configure_network(agent, request)).await
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        self.finish(|agent| create::container(agent, request)).await
    }

    async fn create_process(&self, _: &TtrpcContext, request: CreateProcessRequest) -> ttrpc::Result<Empty> {
        Ok(create::process(&self.agent, &request)?)
    }

    async fn start(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<StartResponse> {
        self.finish(|agent| start::start(agent, request)).await
    }

    async fn wait(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<WaitResponse> {
        Ok(wait::wait(&self.agent, &request).await?)
    }

    async fn signal(&self, _: &TtrpcContext, request: SignalRequest) -> ttrpc::Result<Empty> {
        Ok(signal::signal(&self.agent, &request)?)
    }

    async fn resize_terminal(&self, _: &TtrpcContext, request: ResizeTerminalRequest) -> ttrpc::Result<Empty> {
        Ok(resize_terminal::resize_terminal(&self.agent, &request)?)
    }

    async fn delete(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<Empty> {
        self.finish(|agent| delete::delete(agent, request)).await
    }

    async fn pause(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        self.finish(|agent| freeze::pause(agent, request)).await
    }

    async fn resume(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        self.finish(|agent| freeze::resume(agent, request)).await
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<ListProcessesResponse> {
        Ok(accounting::list_processes(&self.agent, &request)?)
    }

    async fn stats(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<StatsResponse> {
        Ok(accounting::stats(&self.agent, &request)?)
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateRequest) -> ttrpc::Result<Empty> {
        self.finish(|agent| update::update(agent, request)).await
    }

    async fn prepare_volume(&self, _: &TtrpcContext, request: PrepareVolumeRequest) -> ttrpc::Result<Empty> {
        self.finish(|agent| volumes::prepare(agent, request)).await
    }

    async fn put_files(&self, _: &TtrpcContext, request: PutFilesRequest) -> ttrpc::Result<Empty> {
        self.finish(|agent| put_files::put_files(agent, request)).await
    }

    async fn take_file(&self, _: &TtrpcContext, request: TakeFileRequest) -> ttrpc::Result<TakeFileResponse> {
        self.finish(|agent| take_file::take_file(agent, request)).await
    }

    async fn release_volume(&self, _: &TtrpcContext, request: VolumeRequest) -> ttrpc::Result<Empty> {
        self.finish(|agent| volumes::release(agent, request)).await
    }

    async fn release_device(&self, _: &TtrpcContext, request: ReleaseDeviceRequest) -> ttrpc::Result<Empty> {
        self.finish(|agent| devices::release(agent, request)).await
    }

    async fn adjust_clock(&self, _: &TtrpcContext, request: AdjustClockRequest) -> ttrpc::Result<AdjustClockResponse> {
        Ok(adjust_clock::adjust_clock(&request)?)
    }

    async fn add_memory(&self, _: &TtrpcContext, request: AddMemoryRequest) -> ttrpc::Result<Empty> {
        self.finish(|agent| add_memory::add_memory(agent, request)).await
    }

    async fn next_event(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Event> {
        Ok(events::next(&self.agent).await)
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        self.finish(shutdown::shutdown).await
    }
}

/// Runs what waits for the kernel on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(Error::system("run", "a thread"))?
}
