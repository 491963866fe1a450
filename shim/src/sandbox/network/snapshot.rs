//! What the kernel says about a network namespace: everything that a plan could be about, not yet judged.

use super::NetworkError;
use super::netlink::Netlink;
use route_netlink::numbers::{
    AF_INET, AF_INET6, FRA_PRIORITY, IFA_ADDRESS, IFA_BROADCAST, IFA_FLAGS, IFA_LOCAL, IFLA_ADDRESS, IFLA_IFNAME,
    IFLA_LINK, IFLA_LINK_NETNSID, IFLA_MASTER, IFLA_MTU, NDA_DST, NDA_LLADDR, RTA_DST, RTA_ENCAP_TYPE, RTA_GATEWAY,
    RTA_METRICS, RTA_MULTIPATH, RTA_OIF, RTA_PREFSRC, RTA_PRIORITY, RTA_TABLE, RTA_VIA, RTM_GETADDR, RTM_GETLINK,
    RTM_GETNEIGH, RTM_GETROUTE, RTM_GETRULE,
};
use route_netlink::{AddressBody, LinkBody, NeighbourBody, Request, RouteBody, address, attributes, number, text};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub links: Vec<Link>,
    pub addresses: Vec<Address>,
    pub routes: Vec<Route>,
    pub neighbours: Vec<Neighbour>,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub body: LinkBody,
    pub name: String,
    pub mac: Vec<u8>,
    pub mtu: u32,
    /// The bridge or bond that it is a port of.
    pub master: Option<u32>,
    /// The interface of the same namespace that it is on top of.
    pub lower: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub body: AddressBody,
    pub flags: u32,
    pub own: IpAddr,
    /// The other end of a link between two.
    pub peer: Option<IpAddr>,
    pub broadcast: Option<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub body: RouteBody,
    pub table: u32,
    pub destination: IpAddr,
    pub interface: Option<u32>,
    pub gateway: Option<IpAddr>,
    pub source: Option<IpAddr>,
    pub priority: u32,
    /// `RTAX_…` and value.
    pub metrics: Vec<(u16, u32)>,
    /// It has several gateways.
    pub multipath: bool,
    /// It puts packets into others.
    pub encapsulates: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub body: NeighbourBody,
    pub address: IpAddr,
    pub mac: Vec<u8>,
}

/// A rule that chooses a routing table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub family: u8,
    pub priority: u32,
}

impl Snapshot {
    pub fn take(netlink: &mut Netlink) -> Result<Self, NetworkError> {
        let links = Request::dump(RTM_GETLINK, &LinkBody::default().encode());
        let addresses = Request::dump(RTM_GETADDR, &AddressBody::default().encode());
        let mut snapshot = Self {
            links: netlink.dump("the interfaces", &links, link)?,
            addresses: netlink.dump("the addresses", &addresses, interface_address)?,
            ..Self::default()
        };
        for family in [AF_INET, AF_INET6] {
            let body = RouteBody { family, ..RouteBody::default() }.encode();
            snapshot.routes.extend(netlink.dump("the routes", &Request::dump(RTM_GETROUTE, &body), route)?);
            let rules = netlink.dump("the routing rules", &Request::dump(RTM_GETRULE, &body), rule);
            // A kernel that has no rules has none that could be missed.
            snapshot.rules.extend(rules.unwrap_or_default());
            let body = NeighbourBody { family, ..NeighbourBody::default() }.encode();
            snapshot.neighbours.extend(netlink.dump(
                "the neighbours",
                &Request::dump(RTM_GETNEIGH, &body),
                neighbour,
            )?);
        }
        Ok(snapshot)
    }
}

fn link(payload: &[u8]) -> Option<Link> {
    let (body, attributes) = LinkBody::split(payload)?;
    let mut link = Link { body, ..Link::default() };
    let mut elsewhere = false;
    for (kind, value) in attributes {
        match kind {
            IFLA_IFNAME => text(value)?.clone_into(&mut link.name),
            IFLA_ADDRESS => link.mac = value.to_vec(),
            IFLA_MTU => link.mtu = number(value)?,
            IFLA_MASTER => link.master = number(value),
            IFLA_LINK => link.lower = number(value),
            IFLA_LINK_NETNSID => elsewhere = true,
            _ => {}
        }
    }
    // Tunnels name the number zero.
    link.lower = link.lower.filter(|&lower| !elsewhere && lower != 0 && lower != body.index);
    Some(link)
}

fn interface_address(payload: &[u8]) -> Option<Address> {
    let (body, attributes) = AddressBody::split(payload)?;
    let (mut local, mut other, mut broadcast, mut flags) = (None, None, None, 0);
    for (kind, value) in attributes {
        match kind {
            IFA_LOCAL => local = address(value),
            IFA_ADDRESS => other = address(value),
            IFA_BROADCAST => broadcast = address(value),
            IFA_FLAGS => flags = number(value)?,
            _ => {}
        }
    }
    let own = local.or(other)?;
    Some(Address { body, flags, own, peer: other.filter(|&other| other != own), broadcast })
}

fn route(payload: &[u8]) -> Option<Route> {
    let (body, attributes) = RouteBody::split(payload)?;
    let any = if body.family == AF_INET { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let mut route = Route {
        body,
        table: body.table.into(),
        destination: any,
        interface: None,
        gateway: None,
        source: None,
        priority: 0,
        metrics: Vec::new(),
        multipath: false,
        encapsulates: false,
    };
    for (kind, value) in attributes {
        match kind {
            RTA_DST => route.destination = address(value)?,
            RTA_OIF => route.interface = number(value),
            RTA_GATEWAY => route.gateway = address(value),
            // `struct rtvia`: the family, then the address.
            RTA_VIA => route.gateway = address(value.get(2..)?),
            RTA_PREFSRC => route.source = address(value),
            RTA_PRIORITY => route.priority = number(value)?,
            RTA_TABLE => route.table = number(value)?,
            RTA_METRICS => route.metrics = metrics(value),
            RTA_MULTIPATH => route.multipath = true,
            RTA_ENCAP_TYPE => route.encapsulates = true,
            _ => {}
        }
    }
    Some(route)
}

/// The congestion control's name, the one metric that is text, is left to the guest.
fn metrics(value: &[u8]) -> Vec<(u16, u32)> {
    const CONGESTION_CONTROL: u16 = 16;
    let numbers = attributes(value).filter(|(kind, value)| *kind != CONGESTION_CONTROL && value.len() == 4);
    numbers.filter_map(|(kind, value)| Some((kind, number(value)?))).collect()
}

fn neighbour(payload: &[u8]) -> Option<Neighbour> {
    let (body, attributes) = NeighbourBody::split(payload)?;
    let (mut destination, mut mac) = (None, Vec::new());
    for (kind, value) in attributes {
        match kind {
            NDA_DST => destination = address(value),
            NDA_LLADDR => mac = value.to_vec(),
            _ => {}
        }
    }
    Some(Neighbour { body, address: destination?, mac })
}

fn rule(payload: &[u8]) -> Option<Rule> {
    let (body, mut attributes) = RouteBody::split(payload)?;
    let priority = attributes.find(|(kind, _)| *kind == FRA_PRIORITY).and_then(|(_, value)| number(value));
    Some(Rule { family: body.family, priority: priority.unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_machines_own_network_is_read() {
        let mut netlink = Netlink::open().unwrap();
        let snapshot = Snapshot::take(&mut netlink).unwrap();
        let loopback = snapshot.links.iter().find(|link| link.name == "lo").unwrap();
        assert_eq!((loopback.body.index, loopback.lower, loopback.master), (1, None, None));
        assert!(snapshot.rules.iter().any(|rule| rule.family == AF_INET && rule.priority == 32766));
    }

    #[test]
    fn a_link_on_top_of_one_elsewhere_is_not_on_top_of_one_here() {
        let body = LinkBody { index: 2, ..LinkBody::default() }.encode();
        let link_of = |request: Request| link(&request.encode(1)[16..]).unwrap();
        let named = Request::change(RTM_GETLINK, 0, &body).text(IFLA_IFNAME, "eth0").number(IFLA_LINK, 9);
        assert_eq!(link_of(named.clone()).lower, Some(9));
        assert_eq!(link_of(named.number(IFLA_LINK_NETNSID, 0)).lower, None);
    }
}
