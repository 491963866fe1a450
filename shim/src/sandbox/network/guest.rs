//! The pod's network as the agent is told it.

use super::plan::{Address, Interface, Neighbour, NetworkPlan, Route};
use agent_protocol::agent::{self, ConfigureNetworkRequest, InterfaceAddress};
use std::collections::BTreeMap;
use std::net::IpAddr;
use vmm_protocol::PciAddress;

/// `addresses` are where the VMM put the plan's interfaces, in the same order. `None`: there is nothing to tell.
pub fn network_request(
    plan: &NetworkPlan,
    addresses: &[PciAddress],
    sysctls: BTreeMap<String, String>,
) -> Option<ConfigureNetworkRequest> {
    let places = plan.interfaces.iter().zip(addresses);
    let request = ConfigureNetworkRequest {
        interfaces: places.map(|(device, address)| interface(device, *address)).collect(),
        routes: plan.routes.iter().map(route).collect(),
        neighbours: plan.neighbours.iter().map(neighbour).collect(),
        sysctls: sysctls.into_iter().collect(),
        ..ConfigureNetworkRequest::default()
    };
    (request != ConfigureNetworkRequest::default()).then_some(request)
}

fn interface(interface: &Interface, address: PciAddress) -> agent::Interface {
    agent::Interface {
        pci_address: address.to_string(),
        name: interface.name.clone(),
        mtu: interface.mtu.into(),
        addresses: interface.addresses.iter().map(interface_address).collect(),
        ..agent::Interface::default()
    }
}

fn interface_address(address: &Address) -> InterfaceAddress {
    InterfaceAddress {
        address: address.own.to_string(),
        prefix: address.prefix.into(),
        peer: text(address.peer),
        broadcast: text(address.broadcast),
        scope: address.scope.into(),
        ..InterfaceAddress::default()
    }
}

fn route(route: &Route) -> agent::Route {
    agent::Route {
        kind: route.kind.into(),
        interface: route.interface.clone().unwrap_or_default(),
        destination: route.destination.to_string(),
        prefix: route.prefix.into(),
        gateway: text(route.gateway),
        source: text(route.source),
        priority: route.priority,
        scope: route.scope.into(),
        on_link: route.on_link,
        protocol: route.protocol.into(),
        metrics: route.metrics.iter().map(|&(kind, value)| (kind.into(), value)).collect(),
        ..agent::Route::default()
    }
}

fn neighbour(neighbour: &Neighbour) -> agent::Neighbour {
    agent::Neighbour {
        interface: neighbour.interface.clone(),
        address: neighbour.address.to_string(),
        mac: neighbour.mac.to_vec(),
        ..agent::Neighbour::default()
    }
}

fn text(address: Option<IpAddr>) -> String {
    address.map(|address| address.to_string()).unwrap_or_default()
}
