//! The seam to the microVM: what the task service needs of a sandbox, so that its tests can do without one.

use crate::identifier::Identifier;
use crate::sandbox::{Agent, Attached, ContainerPlan, Sandbox, SandboxError, SandboxSpec};
use agent_protocol::agent::SocketConnection;
use agent_protocol::stream::Hello;
use async_trait::async_trait;
use bulkhead_config::Config;
use std::fmt::Debug;
use std::sync::Arc;
use tokio::net::UnixStream;
use tokio::sync::watch;

/// Boots microVMs.
#[async_trait]
pub trait Boot: Debug + Send + Sync {
    async fn boot(&self, spec: SandboxSpec, config: &Config) -> Result<Arc<dyn MicroVm>, SandboxError>;
}

/// A running microVM. The methods are those of [`Sandbox`].
#[async_trait]
pub trait MicroVm: Debug + Send + Sync {
    fn agent(&self) -> &Agent;
    fn vmm_pid(&self) -> u32;
    fn memory_mib(&self) -> u32;
    fn set_oom_score(&self, score: u16);
    fn stopped(&self) -> watch::Receiver<Option<String>>;
    async fn open_stream(&self, hello: &Hello) -> Result<UnixStream, SandboxError>;
    async fn attach(&self, plan: &ContainerPlan) -> Result<Attached, SandboxError>;
    async fn take_back(&self, container: &Identifier);
    fn carry(&self, connection: &SocketConnection);
    fn grow(&self);
    async fn detach(&self, container: &Identifier) -> Result<(), SandboxError>;
    async fn write_back(&self, container: &Identifier) -> Result<(), SandboxError>;
    fn kill(&self, reason: &str);
    async fn destroy(&self);
}

/// Boots real ones.
#[derive(Clone, Copy, Debug)]
pub struct RealBoot;

#[async_trait]
impl Boot for RealBoot {
    async fn boot(&self, spec: SandboxSpec, config: &Config) -> Result<Arc<dyn MicroVm>, SandboxError> {
        Ok(Arc::new(Sandbox::boot(spec, config).await?))
    }
}

#[async_trait]
impl MicroVm for Sandbox {
    fn agent(&self) -> &Agent {
        self.agent()
    }

    fn vmm_pid(&self) -> u32 {
        self.vmm_pid()
    }

    fn memory_mib(&self) -> u32 {
        self.memory_mib()
    }

    fn set_oom_score(&self, score: u16) {
        self.set_oom_score(score);
    }

    fn stopped(&self) -> watch::Receiver<Option<String>> {
        self.stopped()
    }

    async fn open_stream(&self, hello: &Hello) -> Result<UnixStream, SandboxError> {
        self.open_stream(hello).await
    }

    async fn attach(&self, plan: &ContainerPlan) -> Result<Attached, SandboxError> {
        self.attach(plan).await
    }

    async fn take_back(&self, container: &Identifier) {
        self.take_back(container).await;
    }

    fn carry(&self, connection: &SocketConnection) {
        self.carry(connection);
    }

    fn grow(&self) {
        self.grow();
    }

    async fn detach(&self, container: &Identifier) -> Result<(), SandboxError> {
        self.detach(container).await
    }

    async fn write_back(&self, container: &Identifier) -> Result<(), SandboxError> {
        self.write_back(container).await
    }

    fn kill(&self, reason: &str) {
        self.kill(reason);
    }

    async fn destroy(&self) {
        self.destroy().await;
    }
}
