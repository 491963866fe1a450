use super::super::snapshot::{Address as SeenAddress, Neighbour as SeenNeighbour, Route as SeenRoute, Rule};
use super::*;
use route_netlink::{AddressBody, LinkBody, NeighbourBody, RouteBody};

const LINK_SCOPE: u8 = 253;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn loopback() -> Link {
    let body = LinkBody { kind: 772, index: 1, flags: IFF_UP | IFF_LOOPBACK, change: 0 };
    Link { body, name: "lo".into(), mac: vec![0; 6], mtu: 65536, ..Link::default() }
}

fn link(index: u32, name: &str) -> Link {
    let body = LinkBody { kind: ARPHRD_ETHER, index, flags: IFF_UP, change: 0 };
    let last = u8::try_from(index).unwrap();
    Link { body, name: name.into(), mac: vec![2, 0, 0, 0, 0, last], mtu: 1450, ..Link::default() }
}

fn seen_address(index: u32, own: &str, prefix: u8) -> SeenAddress {
    let own = ip(own);
    let body = AddressBody { family: if own.is_ipv4() { 2 } else { 10 }, prefix, scope: 0, index };
    SeenAddress { body, flags: IFA_F_PERMANENT, own, peer: None, broadcast: None }
}

fn seen_route(destination: &str, prefix: u8, gateway: Option<&str>) -> SeenRoute {
    let (destination, gateway) = (ip(destination), gateway.map(ip));
    let family = if destination.is_ipv4() { 2 } else { 10 };
    let scope = if gateway.is_some() { 0 } else { LINK_SCOPE };
    SeenRoute {
        body: RouteBody { family, prefix, table: 254, protocol: 3, scope, kind: RTN_UNICAST, ..RouteBody::default() },
        table: RT_TABLE_MAIN,
        destination,
        interface: Some(2),
        gateway,
        source: None,
        priority: 0,
        metrics: Vec::new(),
        multipath: false,
        encapsulates: false,
    }
}

fn pod() -> Snapshot {
    Snapshot {
        links: vec![loopback(), link(2, "eth0")],
        addresses: vec![seen_address(2, "10.88.0.5", 16), seen_address(2, "fd88::5", 64)],
        routes: vec![seen_route("0.0.0.0", 0, Some("10.88.0.1")), seen_route("10.88.0.0", 16, None)],
        ..Snapshot::default()
    }
}

fn refused(snapshot: Snapshot) -> String {
    let text = NetworkPlan::new(snapshot).unwrap_err().to_string();
    text.strip_prefix("the pod's network cannot be given to a microVM: ").expect("one sentence").to_owned()
}

#[test]
fn the_guest_gets_name_mac_mtu_and_both_families() {
    let plan = NetworkPlan::new(pod()).unwrap();
    let eth0 = &plan.interfaces[0];
    assert_eq!((eth0.name.as_str(), eth0.mac, eth0.mtu), ("eth0", [2, 0, 0, 0, 0, 2], 1450));
    let addresses: Vec<_> = eth0.addresses.iter().map(|address| (address.own, address.prefix)).collect();
    assert_eq!(addresses, [(ip("10.88.0.5"), 16), (ip("fd88::5"), 64)]);
}

#[test]
fn a_route_comes_after_the_one_that_leads_to_its_gateway() {
    let plan = NetworkPlan::new(pod()).unwrap();
    let destinations: Vec<_> = plan.routes.iter().map(|route| route.destination).collect();
    assert_eq!(destinations, [ip("10.88.0.0"), ip("0.0.0.0")]);
}

#[test]
fn only_loopback_is_no_network_and_no_error() {
    let only_loopback = Snapshot { links: vec![loopback()], ..Snapshot::default() };
    assert_eq!(NetworkPlan::new(only_loopback).unwrap(), NetworkPlan::default());
}

#[test]
fn an_interface_without_an_address_is_an_interface() {
    let plan = NetworkPlan::new(Snapshot { links: vec![link(2, "net1")], ..Snapshot::default() }).unwrap();
    assert_eq!((plan.interfaces.len(), plan.interfaces[0].addresses.len()), (1, 0));
}

#[test]
fn an_interface_that_is_down_stays_on_the_node_with_its_routes() {
    let mut snapshot = pod();
    snapshot.links[1].body.flags = 0;
    assert_eq!(NetworkPlan::new(snapshot).unwrap(), NetworkPlan::default());
}

#[test]
fn what_the_guest_makes_or_learns_itself_is_left_to_it() {
    let mut snapshot = pod();
    let local = SeenRoute { table: 255, ..seen_route("10.88.0.5", 32, None) };
    let mut advertised = seen_route("2001:db8::", 64, None);
    advertised.body.protocol = RTPROT_RA;
    let mut unreachable = seen_route("::", 0, None);
    (unreachable.body.kind, unreachable.body.protocol) = (RTN_UNREACHABLE, RTPROT_KERNEL);
    let of_loopback = SeenRoute { interface: Some(1), ..seen_route("::1", 128, None) };
    snapshot.routes.extend([local, advertised, unreachable, of_loopback]);
    snapshot.addresses.push(SeenAddress { flags: 0, ..seen_address(2, "2001:db8::5", 64) });
    assert_eq!(NetworkPlan::new(snapshot).unwrap(), NetworkPlan::new(pod()).unwrap());
}

#[test]
fn only_permanent_neighbours_are_taken() {
    let neighbour = |state| SeenNeighbour {
        body: NeighbourBody { family: 2, index: 2, state, flags: 0 },
        address: ip("169.254.1.1"),
        mac: vec![0xee; 6],
    };
    let stale = 4;
    let plan = NetworkPlan::new(Snapshot { neighbours: vec![neighbour(NUD_PERMANENT), neighbour(stale)], ..pod() });
    let expected = Neighbour { interface: "eth0".into(), address: ip("169.254.1.1"), mac: [0xee; 6] };
    assert_eq!(plan.unwrap().neighbours, [expected]);
}

#[test]
fn what_a_microvm_cannot_have_is_refused_by_name() {
    type Change<'a> = &'a dyn Fn(&mut Snapshot);
    let cases: [(Change<'_>, &str); 9] = [
        (&|pod| pod.links[1].body.kind = 65534, "interface eth0 is not an Ethernet interface"),
        (&|pod| pod.links[1].mac[0] = 1, "interface eth0 has a MAC address that is not one of an interface"),
        (&|pod| pod.links[1].mac = vec![0; 6], "interface eth0 has a MAC address that is not one of an interface"),
        (&|pod| pod.links[1].mtu = 65522, "interface eth0 has MTU 65522; 68..=65521 is possible"),
        (&|pod| pod.links.push(link(3, "eth0")), "it has two interfaces with the name eth0"),
        (
            &|pod| pod.links.push(Link { lower: Some(2), ..link(3, "vlan7") }),
            "interface vlan7 belongs together with eth0 of the same namespace",
        ),
        (&|pod| pod.rules.push(Rule { family: 2, priority: 100 }), "it has a routing rule of its own (priority 100)"),
        (&|pod| pod.routes[0].multipath = true, "the route to 0.0.0.0/0 has several gateways"),
        (
            &|pod| pod.routes[1].encapsulates = true,
            "the route to 10.88.0.0/16 depends on more than the destination, or encapsulates",
        ),
    ];
    for (change, sentence) in cases {
        let mut snapshot = pod();
        change(&mut snapshot);
        assert_eq!(refused(snapshot), sentence);
    }
    let many = (2..11).map(|index| link(index, &format!("net{index}"))).collect();
    assert_eq!(refused(Snapshot { links: many, ..Snapshot::default() }), "it has 9 interfaces; 8 is the most");
}
