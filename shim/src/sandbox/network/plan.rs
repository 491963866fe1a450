//! What the guest gets of the pod's network. Pure.
//!
//! Everything is taken over that the guest's kernel does not make by itself. What a microVM cannot have is refused in a
//! sentence that names it: a pod whose network is nearly right is worse than one that does not start.

use super::NetworkError;
use super::snapshot::{self, Link, Snapshot};
use route_netlink::numbers::{
    ARPHRD_ETHER, IFA_F_PERMANENT, IFF_LOOPBACK, IFF_UP, NTF_PROXY, NUD_PERMANENT, RT_SCOPE_UNIVERSE, RT_TABLE_MAIN,
    RTM_F_CLONED, RTN_BLACKHOLE, RTN_PROHIBIT, RTN_UNICAST, RTN_UNREACHABLE, RTNH_F_ONLINK, RTPROT_KERNEL, RTPROT_RA,
    RTPROT_REDIRECT,
};
use std::net::IpAddr;

/// Interfaces of a pod: each takes a slot of the guest's PCI bus and a thread of its VMM.
const MAX_INTERFACES: usize = 8;

/// Routes, addresses and neighbours of a pod together.
const MAX_ENTRIES: usize = 8192;

/// RFC 791, and what a tap device takes.
const MTU: std::ops::RangeInclusive<u32> = 68..=65_521;

/// Rules that every network namespace has: for the local, the main and the default table.
const KERNELS_RULES: [u32; 3] = [0, 32766, 32767];

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkPlan {
    pub interfaces: Vec<Interface>,
    /// Those that others lead through come first.
    pub routes: Vec<Route>,
    pub neighbours: Vec<Neighbour>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// On the node.
    pub index: u32,
    pub name: String,
    pub mac: [u8; 6],
    pub mtu: u16,
    pub addresses: Vec<Address>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub own: IpAddr,
    pub prefix: u8,
    pub peer: Option<IpAddr>,
    pub broadcast: Option<IpAddr>,
    pub scope: u8,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub kind: u8,
    /// By name. `None`: it leads nowhere.
    pub interface: Option<String>,
    pub destination: IpAddr,
    pub prefix: u8,
    pub gateway: Option<IpAddr>,
    pub source: Option<IpAddr>,
    pub priority: u32,
    pub scope: u8,
    pub on_link: bool,
    pub protocol: u8,
    pub metrics: Vec<(u16, u32)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub interface: String,
    pub address: IpAddr,
    pub mac: [u8; 6],
}

impl NetworkPlan {
    pub fn new(snapshot: Snapshot) -> Result<Self, NetworkError> {
        let entries = snapshot.addresses.len() + snapshot.routes.len() + snapshot.neighbours.len();
        if entries > MAX_ENTRIES {
            return unsupported(format!(
                "it has {entries} addresses, routes and neighbours; {MAX_ENTRIES} is the most"
            ));
        }
        let mut plan = Self { interfaces: interfaces(&snapshot)?, ..Self::default() };
        if plan.interfaces.is_empty() {
            return Ok(plan);
        }
        if let Some(rule) = snapshot.rules.iter().find(|rule| !KERNELS_RULES.contains(&rule.priority)) {
            return unsupported(format!("it has a routing rule of its own (priority {})", rule.priority));
        }
        for route in snapshot.routes {
            plan.take_route(route)?;
        }
        plan.routes.sort_by_key(|route| route.gateway.is_some());
        for neighbour in snapshot.neighbours {
            plan.take_neighbour(&neighbour);
        }
        Ok(plan)
    }

    fn name(&self, index: u32) -> Option<String> {
        self.interfaces.iter().find(|interface| interface.index == index).map(|interface| interface.name.clone())
    }

    fn take_route(&mut self, route: snapshot::Route) -> Result<(), NetworkError> {
        let body = route.body;
        // The guest's kernel makes those of the local table, and hears advertisements and redirects itself.
        let learned = [RTPROT_RA, RTPROT_REDIRECT].contains(&body.protocol) || body.flags & RTM_F_CLONED != 0;
        if route.table != RT_TABLE_MAIN || learned {
            return Ok(());
        }
        let shown = format!("the route to {}/{}", route.destination, body.prefix);
        let interface = match body.kind {
            _ if route.multipath => return unsupported(format!("{shown} has several gateways")),
            RTN_UNICAST => match route.interface.and_then(|index| self.name(index)) {
                Some(interface) => Some(interface),
                // Of loopback, which the guest has, or of an interface that is down.
                None => return Ok(()),
            },
            RTN_BLACKHOLE | RTN_UNREACHABLE | RTN_PROHIBIT if body.protocol != RTPROT_KERNEL => None,
            _ => return Ok(()),
        };
        if route.encapsulates || body.source_prefix != 0 || body.service != 0 {
            return unsupported(format!("{shown} depends on more than the destination, or encapsulates"));
        }
        self.routes.push(Route {
            kind: body.kind,
            interface,
            destination: route.destination,
            prefix: body.prefix,
            gateway: route.gateway,
            source: route.source,
            priority: route.priority,
            scope: if route.gateway.is_some() { RT_SCOPE_UNIVERSE } else { body.scope },
            on_link: body.flags & RTNH_F_ONLINK != 0,
            protocol: body.protocol,
            metrics: route.metrics,
        });
        Ok(())
    }

    fn take_neighbour(&mut self, neighbour: &snapshot::Neighbour) {
        let fixed = neighbour.body.state & NUD_PERMANENT != 0 && neighbour.body.flags & NTF_PROXY == 0;
        let mac = <[u8; 6]>::try_from(neighbour.mac.as_slice());
        if let (true, Some(interface), Ok(mac)) = (fixed, self.name(neighbour.body.index), mac) {
            self.neighbours.push(Neighbour { interface, address: neighbour.address, mac });
        }
    }
}

/// Interfaces that are up. One that is down, such as a tunnel that the kernel makes in every namespace, carries nothing.
fn interfaces(snapshot: &Snapshot) -> Result<Vec<Interface>, NetworkError> {
    let used = |link: &&Link| link.body.flags & IFF_UP != 0 && link.body.flags & IFF_LOOPBACK == 0;
    let links: Vec<&Link> = snapshot.links.iter().filter(used).collect();
    if links.len() > MAX_INTERFACES {
        return unsupported(format!("it has {} interfaces; {MAX_INTERFACES} is the most", links.len()));
    }
    let mut interfaces: Vec<Interface> = Vec::new();
    for link in links {
        let interface = interface(link, snapshot)?;
        if interfaces.iter().any(|other| other.name == interface.name) {
            return unsupported(format!("it has two interfaces with the name {}", interface.name));
        }
        interfaces.push(interface);
    }
    Ok(interfaces)
}

fn interface(link: &Link, snapshot: &Snapshot) -> Result<Interface, NetworkError> {
    let name = &link.name;
    let mac = <[u8; 6]>::try_from(link.mac.as_slice()).ok().filter(|_| link.body.kind == ARPHRD_ETHER);
    let Some(mac) = mac else {
        return unsupported(format!("interface {name} is not an Ethernet interface"));
    };
    if mac == [0; 6] || mac[0] & 1 != 0 {
        return unsupported(format!("interface {name} has a MAC address that is not one of an interface"));
    }
    let Some(mtu) = u16::try_from(link.mtu).ok().filter(|_| MTU.contains(&link.mtu)) else {
        return unsupported(format!("interface {name} has MTU {}; {MTU:?} is possible", link.mtu));
    };
    // Its frames are redirected before the interface on top of it would see them.
    if let Some(lower) = link.master.or(link.lower) {
        let lower = snapshot.links.iter().find(|other| other.body.index == lower);
        let lower = lower.map_or("another interface", |lower| &lower.name);
        return unsupported(format!("interface {name} belongs together with {lower} of the same namespace"));
    }
    // Others were learned from advertisements, as the guest will learn them.
    let own = snapshot.addresses.iter().filter(|address| address.body.index == link.body.index);
    let own = own.filter(|address| address.flags & IFA_F_PERMANENT != 0);
    Ok(Interface { index: link.body.index, name: name.clone(), mac, mtu, addresses: own.map(address).collect() })
}

fn address(address: &snapshot::Address) -> Address {
    Address {
        own: address.own,
        prefix: address.body.prefix,
        peer: address.peer,
        broadcast: address.broadcast,
        scope: address.body.scope,
    }
}

fn unsupported<T>(what: String) -> Result<T, NetworkError> {
    Err(NetworkError::Unsupported(what))
}

#[cfg(test)]
mod tests;
