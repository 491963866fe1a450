//! TakeFile: a termination log, which the node wants when its container has ended.

use crate::agent::Agent;
use crate::error::Error;
use crate::id::VolumeId;
use agent_protocol::agent::{TakeFileRequest, TakeFileResponse};
use agent_protocol::files::CHUNK;
use std::sync::Arc;

pub(super) async fn take_file(agent: Arc<Agent>, request: TakeFileRequest) -> Result<TakeFileResponse, Error> {
    let id = VolumeId::parse(&request.volume)?;
    let limit = usize::try_from(request.limit).unwrap_or(CHUNK).min(CHUNK);
    let (content, cut) = super::blocking(move || agent.volumes.take_file(&id, limit)).await?;
    Ok(TakeFileResponse { content, cut, ..Default::default() })
}
