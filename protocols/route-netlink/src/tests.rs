use super::numbers::{IFLA_IFNAME, IFLA_MTU, NLM_F_CREATE, RTM_GETLINK, RTM_NEWLINK};
use super::*;

/// Little-endian processors only, like the golden bytes below.
#[test]
fn a_request_has_a_golden_encoding() {
    let body = LinkBody { index: 2, flags: 1, change: 1, ..LinkBody::default() };
    let request = Request::change(RTM_NEWLINK, NLM_F_CREATE, &body.encode()).text(IFLA_IFNAME, "eth0");
    #[rustfmt::skip]
    let golden = [
        44, 0, 0, 0, 16, 0, 5, 4, 7, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0,
        9, 0, 3, 0, b'e', b't', b'h', b'0', 0, 0, 0, 0,
    ];
    assert_eq!(request.encode(7), golden);
}

#[test]
fn bodies_survive_a_round_trip() {
    let link = LinkBody { kind: 1, index: 2, flags: 0x1043, change: 1 };
    assert_eq!(LinkBody::split(&link.encode()).unwrap().0, link);
    let address = AddressBody { family: 2, prefix: 24, scope: 253, index: 9 };
    assert_eq!(AddressBody::split(&address.encode()).unwrap().0, address);
    let route =
        RouteBody { family: 10, prefix: 64, table: 254, protocol: 4, kind: 1, flags: 4, ..RouteBody::default() };
    assert_eq!(RouteBody::split(&route.encode()).unwrap().0, route);
    let neighbour = NeighbourBody { family: 2, index: 3, state: 0x80, flags: 8 };
    assert_eq!(NeighbourBody::split(&neighbour.encode()).unwrap().0, neighbour);
    let traffic = TrafficBody { index: 3, handle: 4, parent: 5, info: 6 };
    assert_eq!(TrafficBody::split(&traffic.encode()).unwrap().0, traffic);
}

#[test]
fn attributes_are_read_up_to_the_first_that_is_malformed() {
    let nest = Nest::default().attribute(0x8000 | IFLA_IFNAME, b"a\0").attribute(IFLA_MTU, &[1, 2, 3, 4]);
    let mut bytes = nest.bytes().to_vec();
    let expected: [(u16, &[u8]); 2] = [(IFLA_IFNAME, b"a\0"), (IFLA_MTU, &[1, 2, 3, 4])];
    assert_eq!(attributes(&bytes).collect::<Vec<_>>(), expected);
    for malformed in [[3, 0, 1, 0], [9, 0, 1, 0], [0, 0, 1, 0]] {
        bytes.truncate(nest.bytes().len());
        bytes.extend(malformed);
        assert_eq!(attributes(&bytes).count(), 2, "{malformed:?}");
    }
}

/// A malformed datagram is an error without a number.
fn results(datagram: &[u8], sequence: u32) -> Vec<Result<Reply<'_>, Option<i32>>> {
    replies(datagram, sequence).map(|reply| reply.map_err(|error| error.raw_os_error())).collect()
}

#[test]
fn replies_to_others_are_passed_over() {
    let mut datagram = Request::dump(RTM_GETLINK, b"abcd").encode(1);
    datagram.extend(Request::dump(RTM_GETLINK, b"efgh").encode(2));
    assert_eq!(results(&datagram, 2), [Ok(Reply::Object { kind: RTM_GETLINK, payload: b"efgh" })]);
}

#[test]
fn an_end_carries_the_errors_number() {
    let end = |number: i32| Request { kind: NLMSG_ERROR, flags: 0, payload: number.to_ne_bytes().to_vec() }.encode(1);
    assert_eq!(results(&end(0), 1), [Ok(Reply::End)]);
    assert_eq!(results(&end(-17), 1), [Err(Some(17))]);
    assert_eq!(results(&end(i32::MIN), 1), [Err(Some(i32::MAX))]);
    assert_eq!(results(&end(-17), 2), []);
}

#[test]
fn malformed_datagrams_are_refused() {
    let whole = Request::dump(RTM_GETLINK, b"abcd").encode(1);
    for length in 1..whole.len() {
        assert_eq!(results(&whole[..length], 1), [Err(None)], "{length}");
    }
    let mut short = whole.clone();
    short[0] = 3;
    assert_eq!(results(&short, 1), [Err(None)]);
}

#[test]
fn values_of_other_lengths_are_no_values() {
    assert_eq!(address(&[1, 2, 3]), None);
    assert_eq!(number(&[1, 2, 3]), None);
    assert_eq!(text(b"eth0\0junk"), Some("eth0"));
    assert_eq!(text(b"\xff"), None);
}
