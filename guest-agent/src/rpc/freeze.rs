//! Pause and Resume.

use crate::agent::Agent;
use crate::error::Error;
use crate::id::ContainerId;
use agent_protocol::agent::{ContainerRequest, Empty};
use std::sync::Arc;

pub(super) async fn pause(agent: Arc<Agent>, request: ContainerRequest) -> Result<Empty, Error> {
    agent.containers.get(&ContainerId::parse(&request.container_id)?)?.pause().await?;
    Ok(Empty::new())
}

pub(super) async fn resume(agent: Arc<Agent>, request: ContainerRequest) -> Result<Empty, Error> {
    agent.containers.get(&ContainerId::parse(&request.container_id)?)?.resume().await?;
    Ok(Empty::new())
}
