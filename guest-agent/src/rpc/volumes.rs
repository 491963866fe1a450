//! PrepareVolume and ReleaseVolume.

use crate::agent::Agent;
use crate::error::Error;
use crate::id::{PciAddress, VolumeId};
use crate::volumes::filesystem;
use agent_protocol::agent::prepare_volume_request::Kind;
use agent_protocol::agent::{Empty, PrepareVolumeRequest, VolumeRequest};
use std::sync::Arc;

pub(super) async fn prepare(agent: Arc<Agent>, request: PrepareVolumeRequest) -> Result<Empty, Error> {
    let id = VolumeId::parse(&request.volume)?;
    let disk = match &request.kind {
        Some(Kind::Scratch(volume)) => Some(agent.pci.disk(&PciAddress::parse(&volume.pci_address)?).await?),
        Some(Kind::Filesystem(volume)) => Some(agent.pci.disk(&filesystem::address(volume)?).await?),
        _ => None,
    };
    if let Some(Kind::Socket(socket)) = &request.kind {
        agent.sockets.prepare(&id, socket)?;
        return Ok(Empty::new());
    }
    super::blocking(move || match (&request.kind, disk) {
        (Some(Kind::Pushed(volume)), _) => agent.volumes.prepare(&id, volume),
        (Some(Kind::Memory(volume)), _) => agent.volumes.prepare_memory(&id, volume),
        (Some(Kind::Scratch(volume)), Some(disk)) => agent.volumes.prepare_disk(&id, volume, &disk),
        (Some(Kind::Filesystem(volume)), Some(disk)) => agent.volumes.prepare_filesystem(&id, volume, &disk),
        (Some(Kind::Part(part)), _) => agent.volumes.prepare_part(&id, part),
        // Generated enums may grow: what this agent doesn't know it can't make.
        _ => Err(Error::invalid("volume", id.as_str(), "this agent does not know its kind")),
    })
    .await?;
    Ok(Empty::new())
}

pub(super) async fn release(agent: Arc<Agent>, request: VolumeRequest) -> Result<Empty, Error> {
    let id = VolumeId::parse(&request.volume)?;
    agent.sockets.release(&id)?;
    super::blocking(move || agent.volumes.release(&id)).await?;
    Ok(Empty::new())
}
