//! PrepareVolume and ReleaseVolume.

use crate::agent::Agent;
use crate::error::Error;
use crate::id::VolumeId;
use agent_protocol::agent::prepare_volume_request::Kind;
use agent_protocol::agent::{Empty, PrepareVolumeRequest, VolumeRequest};
use std::sync::Arc;

pub(super) async fn prepare(agent: Arc<Agent>, request: PrepareVolumeRequest) -> Result<Empty, Error> {
    let id = VolumeId::parse(&request.volume)?;
    super::blocking(move || match &request.kind {
        Some(Kind::Pushed(volume)) => agent.volumes.prepare(&id, volume),
        // Generated enums may grow: what this agent doesn't know it can't make.
        _ => Err(Error::invalid("volume", id.as_str(), "this agent does not know its kind")),
    })
    .await?;
    Ok(Empty::new())
}

pub(super) async fn release(agent: Arc<Agent>, request: VolumeRequest) -> Result<Empty, Error> {
    let id = VolumeId::parse(&request.volume)?;
    super::blocking(move || agent.volumes.release(&id)).await?;
    Ok(Empty::new())
}
