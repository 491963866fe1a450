//! ListProcesses and Stats.

use crate::agent::Agent;
use crate::error::Error;
use crate::id::ContainerId;
use agent_protocol::agent::{ContainerRequest, ListProcessesResponse, StatsResponse};

pub(super) fn list_processes(agent: &Agent, request: &ContainerRequest) -> Result<ListProcessesResponse, Error> {
    let container = agent.containers.get(&ContainerId::parse(&request.container_id)?)?;
    Ok(ListProcessesResponse { pids: container.cgroup.processes()?, ..Default::default() })
}

pub(super) fn stats(agent: &Agent, request: &ContainerRequest) -> Result<StatsResponse, Error> {
    let container = agent.containers.get(&ContainerId::parse(&request.container_id)?)?;
    container.cgroup.stats().ok_or_else(|| Error::Ended(container.init.name.clone()))
}
