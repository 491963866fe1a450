//! Start, of a container's command or of an added process.

use crate::agent::Agent;
use crate::error::Error;
use crate::id::ProcessName;
use agent_protocol::agent::{ProcessRequest, StartResponse};
use std::sync::Arc;

pub(super) async fn start(agent: Arc<Agent>, request: ProcessRequest) -> Result<StartResponse, Error> {
    let name = ProcessName::parse(&request.container_id, &request.exec_id)?;
    let container = agent.containers.get(&name.container)?;
    let pid = match &name.exec {
        None => container.start(&agent).await?,
        Some(exec) => container.start_exec(&agent, exec, &name).await?,
    };
    Ok(StartResponse { pid, ..Default::default() })
}
