//! Wait: before the start, while it runs, after the end, by any number of callers.

use crate::agent::Agent;
use crate::error::Error;
use crate::id::ProcessName;
use agent_protocol::agent::{ProcessRequest, WaitResponse};

pub(super) async fn wait(agent: &Agent, request: &ProcessRequest) -> Result<WaitResponse, Error> {
    let name = ProcessName::parse(&request.container_id, &request.exec_id)?;
    let end = agent.containers.get(&name.container)?.process(&name)?.end();
    let end = end.await.ok_or(Error::NoProcess(name))?;
    Ok(WaitResponse {
        exit_status: end.exit.status,
        exited_at_ns: end.exit.at_ns,
        stdout_bytes: end.written.stdout,
        stderr_bytes: end.written.stderr,
        ..Default::default()
    })
}
