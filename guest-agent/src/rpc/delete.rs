//! Delete, of a container with everything in it or of an added process.

use crate::agent::Agent;
use crate::error::Error;
use crate::id::ProcessName;
use agent_protocol::agent::{Empty, ProcessRequest};
use std::sync::Arc;

pub(super) async fn delete(agent: Arc<Agent>, request: ProcessRequest) -> Result<Empty, Error> {
    let name = ProcessName::parse(&request.container_id, &request.exec_id)?;
    let container = agent.containers.get(&name.container)?;
    match &name.exec {
        None => container.remove(&agent).await?,
        Some(exec) => container.remove_exec(exec, &name)?,
    }
    Ok(Empty::new())
}
