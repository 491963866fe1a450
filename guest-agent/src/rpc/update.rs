//! Update: new limits for a running container.

use crate::agent::Agent;
use crate::error::Error;
use crate::id::ContainerId;
use agent_protocol::agent::{Empty, UpdateRequest};
use std::sync::Arc;

pub(super) async fn update(agent: Arc<Agent>, request: UpdateRequest) -> Result<Empty, Error> {
    let container = agent.containers.get(&ContainerId::parse(&request.container_id)?)?;
    container.update(&agent, &request.resources).await?;
    Ok(Empty::new())
}
