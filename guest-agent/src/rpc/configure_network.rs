//! The pod's network: interfaces that the node attached, their addresses, routes and neighbours, then its settings.

use crate::agent::Agent;
use crate::error::Error;
use crate::guest::network::{self, Plan};
use crate::guest::sysctl;
use crate::id::PciAddress;
use agent_protocol::agent::{ConfigureNetworkRequest, Empty};
use std::sync::Arc;

pub(super) async fn configure_network(agent: Arc<Agent>, request: ConfigureNetworkRequest) -> Result<Empty, Error> {
    if !request.interfaces.is_empty() {
        agent.pci.rescan().await?;
    }
    let mut indices = Vec::with_capacity(request.interfaces.len());
    for interface in &request.interfaces {
        let name = agent.pci.interface(&PciAddress::parse(&interface.pci_address)?).await?;
        let index = nix::net::if_::if_nametoindex(name.as_str());
        indices.push(index.map_err(Error::system("find", format!("interface {name}")))?);
    }
    let plan = Plan::new(&request, &indices)?;
    let applied = tokio::task::spawn_blocking(move || network::apply(&plan)).await;
    applied.map_err(std::io::Error::other).map_err(Error::system("make", "the pod's network"))??;
    for (name, value) in &request.sysctls {
        sysctl::set(name, value)?;
    }
    Ok(Empty::new())
}
