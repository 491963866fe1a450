//! ReleaseDevice, before the VMM detaches it.

use crate::agent::Agent;
use crate::error::Error;
use crate::id::PciAddress;
use agent_protocol::agent::{Empty, ReleaseDeviceRequest};
use std::sync::Arc;

pub(super) async fn release(agent: Arc<Agent>, request: ReleaseDeviceRequest) -> Result<Empty, Error> {
    let address = PciAddress::parse(&request.pci_address)?;
    // The next disk at this address has other layers.
    agent.layers.forget(&address).await;
    agent.pci.remove(&address).await?;
    Ok(Empty::new())
}
