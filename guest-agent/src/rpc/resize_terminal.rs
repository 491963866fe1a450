//! ResizeTerminal. Harmless after the end: the request and the end may cross.

use crate::agent::Agent;
use crate::error::Error;
use crate::id::ProcessName;
use agent_protocol::agent::{Empty, ResizeTerminalRequest};

pub(super) fn resize_terminal(agent: &Agent, request: &ResizeTerminalRequest) -> Result<Empty, Error> {
    let name = ProcessName::parse(&request.container_id, &request.exec_id)?;
    let process = agent.containers.get(&name.container)?.process(&name)?;
    let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
    process.stdio.resize(cells(request.columns), cells(request.rows))?;
    Ok(Empty::new())
}
