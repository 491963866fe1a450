//! PutFiles. The order of calls about a volume is the shim's: it waits for each answer.

use crate::agent::Agent;
use crate::error::Error;
use crate::id::VolumeId;
use agent_protocol::agent::{Empty, PutFilesRequest};
use std::sync::Arc;

pub(super) async fn put_files(agent: Arc<Agent>, request: PutFilesRequest) -> Result<Empty, Error> {
    let id = VolumeId::parse(&request.volume)?;
    super::blocking(move || {
        let result = agent.volumes.put(&id, request.generation, &request.entries, request.last);
        // No container is charged for them.
        agent.pressure.adjust();
        result
    })
    .await?;
    Ok(Empty::new())
}
