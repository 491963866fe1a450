use super::*;
use route_netlink::{attributes, number};

fn interface(name: &str) -> Interface {
    let address = InterfaceAddress { address: "10.88.0.5".into(), prefix: 16, ..InterfaceAddress::default() };
    Interface { name: name.into(), mtu: 1450, addresses: vec![address], ..Interface::default() }
}

fn request(names: &[&str]) -> ConfigureNetworkRequest {
    ConfigureNetworkRequest {
        interfaces: names.iter().map(|name| interface(name)).collect(),
        ..ConfigureNetworkRequest::default()
    }
}

fn route(destination: &str, gateway: &str) -> Route {
    Route {
        kind: 1,
        interface: "eth0".into(),
        destination: destination.into(),
        gateway: gateway.into(),
        ..Route::default()
    }
}

fn objects(plan: &Plan) -> Vec<String> {
    let shown = |step: &Step| match step {
        Step::Change { operation, object, .. } => format!("{operation} {object}"),
        Step::NoLinkLocalAddress { interface } => format!("no link-local address of {interface}"),
    };
    plan.steps.iter().map(shown).collect()
}

/// The attributes of the request of the last step.
fn last_attributes(plan: &Plan, body: usize) -> Vec<(u16, Vec<u8>)> {
    let Some(Step::Change { request, .. }) = plan.steps.last() else { panic!("a change") };
    let bytes = request.encode(1);
    attributes(&bytes[16 + body..]).map(|(kind, value)| (kind, value.to_vec())).collect()
}

#[test]
fn interfaces_are_renamed_out_of_each_others_way() {
    let plan = Plan::new(&request(&["eth1", "eth0"]), &[2, 3]).unwrap();
    let expected = [
        "name interface bulkhead2",
        "name interface bulkhead3",
        "name interface eth1",
        "no link-local address of eth1",
        "bring up interface eth1 with MTU 1450",
        "add address 10.88.0.5/16 to interface eth1",
        "name interface eth0",
    ];
    assert_eq!(objects(&plan)[..7], expected);
}

#[test]
fn addresses_bring_no_route_and_are_not_probed_for() {
    let plan = Plan::new(&request(&["eth0"]), &[2]).unwrap();
    let attributes = last_attributes(&plan, AddressBody::LENGTH);
    let flags = attributes.iter().find(|(kind, _)| *kind == IFA_FLAGS).and_then(|(_, value)| number(value));
    assert_eq!(flags, Some(IFA_F_NODAD | IFA_F_NOPREFIXROUTE));
    assert!(attributes.contains(&(IFA_ADDRESS, vec![10, 88, 0, 5])));
}

#[test]
fn a_route_carries_its_gateway_and_metrics() {
    let mut request = request(&["eth0"]);
    let mut route = route("0.0.0.0", "10.88.0.1");
    route.metrics = [(2, 1400)].into();
    request.routes.push(route);
    let plan = Plan::new(&request, &[2]).unwrap();
    let attributes = last_attributes(&plan, RouteBody::LENGTH);
    assert!(attributes.contains(&(RTA_GATEWAY, vec![10, 88, 0, 1])));
    assert!(attributes.contains(&(RTA_OIF, 2_u32.to_ne_bytes().to_vec())));
    let metric = Nest::default().attribute(2, &1400_u32.to_ne_bytes());
    assert!(attributes.contains(&(RTA_METRICS, metric.bytes().to_vec())));
}

#[test]
fn a_gateway_of_the_other_family_is_possible() {
    let mut request = request(&["eth0"]);
    request.routes.push(route("10.0.0.0", "fe80::1"));
    let attributes = last_attributes(&Plan::new(&request, &[2]).unwrap(), RouteBody::LENGTH);
    let via = attributes.iter().find(|(kind, _)| *kind == RTA_VIA).map(|(_, value)| value.clone()).unwrap();
    assert_eq!((via.len(), via[0], via[2]), (18, AF_INET6, 0xfe));
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let refused = |request: &ConfigureNetworkRequest| Plan::new(request, &[2]).unwrap_err().to_string();
    for name in ["", ".", "..", "a/b", "a b", "0123456789abcdef"] {
        assert!(refused(&request(&[name])).starts_with(&format!("interface name {name:?} is not valid")), "{name}");
    }
    let mut bad = request(&["eth0"]);
    bad.routes.push(Route { interface: "eth7".into(), ..route("10.0.0.0", "") });
    assert_eq!(refused(&bad), "interface \"eth7\" is not valid: it is not in the request");
    bad.routes = vec![route("10.0.0", "")];
    assert_eq!(refused(&bad), "address \"10.0.0\" is not valid: it is no IP address");
    bad.routes = vec![Route { prefix: 256, ..route("10.0.0.0", "") }];
    assert_eq!(refused(&bad), "number \"256\" is not valid: the kernel has one byte for it");
}
