//! AddMemory: the answer to a guest that wanted more.

use crate::agent::Agent;
use crate::error::Error;
use crate::id::PciAddress;
use agent_protocol::agent::{AddMemoryRequest, Empty};
use std::sync::Arc;

pub(super) async fn add_memory(agent: Arc<Agent>, request: AddMemoryRequest) -> Result<Empty, Error> {
    if request.pci_address.is_empty() {
        agent.pressure.release();
        return Ok(Empty::new());
    }
    let address = PciAddress::parse(&request.pci_address)?;
    agent.pci.find_new(&address).await?;
    agent.pressure.added(request.mib).await;
    Ok(Empty::new())
}
