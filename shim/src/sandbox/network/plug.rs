//! Giving the pod's network to its running guest.

use super::super::SandboxError;
use super::super::agent::Agent;
use super::super::forward::Listeners;
use super::super::vmm::Vmm;
use super::{PodNetwork, network_request};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use vmm_protocol::{Device, FdSlot};

/// Plugs an interface for each tap and has the agent configure them all. `sysctls` are the network's: those of an interface
/// exist with it. The listeners are left for whoever forwards connections.
pub async fn plug(
    vmm: &Vmm,
    agent: &Agent,
    network: PodNetwork,
    sysctls: BTreeMap<String, String>,
) -> Result<Option<Listeners>, SandboxError> {
    let PodNetwork { plan, taps, listeners } = network;
    let mut addresses = Vec::with_capacity(taps.len());
    for (interface, tap) in plan.interfaces.iter().zip(taps) {
        let device = Device::Net { tap: FdSlot(0), mac: interface.mac, mtu: interface.mtu };
        // Ours is closed here: the tap ends with the VMM.
        let (_, address) = vmm.attach(&format!("interface {}", interface.name), device, tap.as_fd()).await?;
        addresses.push(address);
    }
    if let Some(request) = network_request(&plan, &addresses, sysctls) {
        agent.configure_network(&request).await?;
    }
    Ok(listeners)
}
