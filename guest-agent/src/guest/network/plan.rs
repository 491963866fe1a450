//! The steps from bare interfaces to the pod's network, as netlink requests. Pure.

use crate::error::Error;
use agent_protocol::agent::{ConfigureNetworkRequest, Interface, InterfaceAddress, Neighbour, Route};
use route_netlink::numbers::{
    AF_INET, AF_INET6, IFA_ADDRESS, IFA_BROADCAST, IFA_F_NODAD, IFA_F_NOPREFIXROUTE, IFA_FLAGS, IFA_LOCAL, IFLA_IFNAME,
    IFLA_MTU, NDA_DST, NDA_LLADDR, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REPLACE, NUD_PERMANENT, RT_TABLE_MAIN, RTA_DST,
    RTA_GATEWAY, RTA_METRICS, RTA_OIF, RTA_PREFSRC, RTA_PRIORITY, RTA_TABLE, RTA_VIA, RTM_NEWADDR, RTM_NEWLINK,
    RTM_NEWNEIGH, RTM_NEWROUTE, RTNH_F_ONLINK,
};
use route_netlink::{AddressBody, LinkBody, NeighbourBody, Nest, Request, RouteBody};
use std::net::IpAddr;

/// Linux's limit, without the zero at the end.
const MAX_NAME: usize = 15;

/// In order.
#[derive(Debug)]
pub struct Plan {
    steps: Vec<Step>,
}

#[derive(Debug)]
pub(super) enum Step {
    Change { operation: &'static str, object: String, request: Request },
    NoLinkLocalAddress { interface: String },
}

impl Plan {
    /// `indices` are the kernel's numbers of the request's interfaces, in the same order.
    pub fn new(request: &ConfigureNetworkRequest, indices: &[u32]) -> Result<Self, Error> {
        let interfaces: Vec<_> = request.interfaces.iter().zip(indices.iter().copied()).collect();
        for (interface, _) in &interfaces {
            check_name(&interface.name)?;
        }
        let mut plan = Self { steps: Vec::new() };
        // The kernel may have given one interface the name that another is to have.
        for &(_, index) in &interfaces {
            plan.rename(index, &format!("bulkhead{index}"));
        }
        for &(interface, index) in &interfaces {
            plan.rename(index, &interface.name);
            plan.interface(interface, index)?;
        }
        let index = |name: &str| {
            let found = interfaces.iter().find(|(interface, _)| interface.name == name);
            found.map(|&(_, index)| index).ok_or_else(|| Error::invalid("interface", name, "it is not in the request"))
        };
        for route in &request.routes {
            let index = if route.interface.is_empty() { None } else { Some(index(&route.interface)?) };
            plan.route(route, index)?;
        }
        for neighbour in &request.neighbours {
            plan.neighbour(neighbour, index(&neighbour.interface)?)?;
        }
        Ok(plan)
    }

    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }

    fn change(&mut self, operation: &'static str, object: String, request: Request) {
        self.steps.push(Step::Change { operation, object, request });
    }

    fn rename(&mut self, index: u32, name: &str) {
        let body = LinkBody { index, ..LinkBody::default() };
        let request = Request::change(RTM_NEWLINK, 0, &body.encode()).text(IFLA_IFNAME, name);
        self.change("name", format!("interface {name}"), request);
    }

    fn interface(&mut self, interface: &Interface, index: u32) -> Result<(), Error> {
        self.steps.push(Step::NoLinkLocalAddress { interface: interface.name.clone() });
        let request = Request::bring_up(index).number(IFLA_MTU, interface.mtu);
        self.change("bring up", format!("interface {} with MTU {}", interface.name, interface.mtu), request);
        interface.addresses.iter().try_for_each(|address| self.address(address, interface, index))
    }

    fn address(&mut self, address: &InterfaceAddress, interface: &Interface, index: u32) -> Result<(), Error> {
        let own = parse(&address.address)?;
        let object = format!("address {}/{} to interface {}", own, address.prefix, interface.name);
        let body =
            AddressBody { family: family(own), prefix: byte(address.prefix)?, scope: byte(address.scope)?, index };
        let mut request = Request::change(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &body.encode())
            .address(IFA_LOCAL, own)
            .address(IFA_ADDRESS, optional(&address.peer)?.unwrap_or(own))
            .number(IFA_FLAGS, IFA_F_NODAD | IFA_F_NOPREFIXROUTE);
        if let Some(broadcast) = optional(&address.broadcast)? {
            request = request.address(IFA_BROADCAST, broadcast);
        }
        self.change("add", object, request);
        Ok(())
    }

    fn route(&mut self, route: &Route, index: Option<u32>) -> Result<(), Error> {
        let destination = parse(&route.destination)?;
        let body = RouteBody {
            family: family(destination),
            prefix: byte(route.prefix)?,
            protocol: byte(route.protocol)?,
            scope: byte(route.scope)?,
            kind: byte(route.kind)?,
            flags: if route.on_link { RTNH_F_ONLINK } else { 0 },
            ..RouteBody::default()
        };
        // Appended: IPv6 has several routes with one destination, one on each interface.
        let mut request = Request::change(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_APPEND, &body.encode())
            .number(RTA_TABLE, RT_TABLE_MAIN)
            .address(RTA_DST, destination);
        if let Some(index) = index {
            request = request.number(RTA_OIF, index);
        }
        request = match optional(&route.gateway)? {
            Some(gateway) if family(gateway) == body.family => request.address(RTA_GATEWAY, gateway),
            Some(gateway) => request.attribute(RTA_VIA, &via(gateway)),
            None => request,
        };
        if let Some(source) = optional(&route.source)? {
            request = request.address(RTA_PREFSRC, source);
        }
        if route.priority != 0 {
            request = request.number(RTA_PRIORITY, route.priority);
        }
        if !route.metrics.is_empty() {
            request = request.attribute(RTA_METRICS, metrics(route)?.bytes());
        }
        self.change("add", format!("the route to {}/{}", destination, route.prefix), request);
        Ok(())
    }

    fn neighbour(&mut self, neighbour: &Neighbour, index: u32) -> Result<(), Error> {
        let address = parse(&neighbour.address)?;
        let body = NeighbourBody { family: family(address), index, state: NUD_PERMANENT, flags: 0 };
        let request = Request::change(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &body.encode())
            .address(NDA_DST, address)
            .attribute(NDA_LLADDR, &neighbour.mac);
        self.change("add", format!("neighbour {address} of interface {}", neighbour.interface), request);
        Ok(())
    }
}

/// Names become paths in `/proc/sys`.
fn check_name(name: &str) -> Result<(), Error> {
    let graphic = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(graphic) || [".", ".."].contains(&name) {
        return Err(Error::invalid("interface name", name, "it is no name that Linux gives interfaces"));
    }
    Ok(())
}

fn metrics(route: &Route) -> Result<Nest, Error> {
    let mut metrics: Vec<_> = route.metrics.iter().collect();
    metrics.sort_unstable();
    metrics.into_iter().try_fold(Nest::default(), |nest, (&kind, value)| {
        let kind =
            u16::try_from(kind).map_err(|_| Error::invalid("route metric", &kind.to_string(), "it is unknown"))?;
        Ok(nest.attribute(kind, &value.to_ne_bytes()))
    })
}

/// `struct rtvia`: a gateway of the other family.
fn via(gateway: IpAddr) -> Vec<u8> {
    let mut bytes = u16::from(family(gateway)).to_ne_bytes().to_vec();
    match gateway {
        IpAddr::V4(address) => bytes.extend(address.octets()),
        IpAddr::V6(address) => bytes.extend(address.octets()),
    }
    bytes
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn parse(text: &str) -> Result<IpAddr, Error> {
    text.parse().map_err(|_| Error::invalid("address", text, "it is no IP address"))
}

fn optional(text: &str) -> Result<Option<IpAddr>, Error> {
    if text.is_empty() { Ok(None) } else { parse(text).map(Some) }
}

/// The kernel's fields for prefixes, scopes and kinds.
fn byte(number: u32) -> Result<u8, Error> {
    u8::try_from(number).map_err(|_| Error::invalid("number", &number.to_string(), "the kernel has one byte for it"))
}

#[cfg(test)]
mod tests;
