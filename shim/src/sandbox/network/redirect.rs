//! Frames of one interface become those of another, in both directions, by the kernel's traffic control.

use super::NetworkError;
use super::netlink::Netlink;
use super::plan::Interface;
use super::tap;
use route_netlink::numbers::{
    ETH_P_ALL, IFLA_MTU, INGRESS_HANDLE, NLM_F_CREATE, NLM_F_EXCL, RTM_DELQDISC, RTM_GETLINK, RTM_GETTFILTER,
    RTM_NEWQDISC, RTM_NEWTFILTER, TC_ACT_STOLEN, TC_H_INGRESS, TC_U32_TERMINAL, TCA_ACT_KIND, TCA_ACT_OPTIONS,
    TCA_EGRESS_REDIR, TCA_KIND, TCA_MIRRED_PARMS, TCA_OPTIONS, TCA_U32_ACT, TCA_U32_SEL,
};
use route_netlink::{LOOPBACK, LinkBody, Nest, Request, TrafficBody, attributes, number};
use std::fs::File;
use std::io;
use std::path::Path;

/// Any; there is one filter.
const PRIORITY: u32 = 1;

/// Where `struct tc_mirred` has the target's index, and how long it is.
const MIRRED_TARGET: usize = 24;
const MIRRED: usize = 28;

/// Makes a tap beside the interface and joins the two.
pub fn connect(netlink: &mut Netlink, interface: &Interface) -> Result<File, NetworkError> {
    let failed = || NetworkError::system("make", format!("a tap device for interface {}", interface.name));
    let (tap, name) = tap::create().map_err(failed())?;
    silence(&name).map_err(failed())?;
    let index = nix::net::if_::if_nametoindex(name.as_str()).map_err(io::Error::from).map_err(failed())?;
    let up = Request::bring_up(index).number(IFLA_MTU, interface.mtu.into());
    netlink.change(&up).map_err(failed())?;
    for (from, to) in [(interface.index, index), (index, interface.index)] {
        let failed = || NetworkError::system("redirect", format!("the frames of interface {}", interface.name));
        netlink.change(&ingress(from)).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => NetworkError::InUse(interface.name.clone()),
            _ => failed()(error),
        })?;
        netlink.change(&redirect(from, to)).map_err(failed())?;
    }
    Ok(tap)
}

/// The tap must not speak for itself: the guest would hear it.
fn silence(tap: &str) -> io::Result<()> {
    let path = Path::new("/proc/sys/net/ipv6/conf").join(tap).join("disable_ipv6");
    match std::fs::write(path, "1") {
        // A node without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn ingress(index: u32) -> Request {
    let body = TrafficBody { index, handle: INGRESS_HANDLE, parent: TC_H_INGRESS, info: 0 };
    Request::change(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &body.encode()).text(TCA_KIND, "ingress")
}

/// u32 rather than matchall, which some kernels lack.
fn redirect(from: u32, to: u32) -> Request {
    let info = PRIORITY << 16 | u32::from(ETH_P_ALL.to_be());
    let body = TrafficBody { index: from, handle: 0, parent: INGRESS_HANDLE, info };
    let action = Nest::default()
        .attribute(TCA_ACT_KIND, b"mirred\0")
        .attribute(TCA_ACT_OPTIONS, Nest::default().attribute(TCA_MIRRED_PARMS, &mirred(to)).bytes());
    // Actions are numbered from 1.
    let actions = Nest::default().attribute(1, action.bytes());
    let options = Nest::default().attribute(TCA_U32_SEL, &every_frame()).attribute(TCA_U32_ACT, actions.bytes());
    Request::change(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, &body.encode())
        .text(TCA_KIND, "u32")
        .attribute(TCA_OPTIONS, options.bytes())
}

/// `struct tc_u32_sel` with one key, whose mask is zero.
fn every_frame() -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[0] = TC_U32_TERMINAL;
    bytes[2] = 1;
    bytes
}

/// `struct tc_mirred`: index, capabilities, action, two counts, what to do, the target.
fn mirred(to: u32) -> [u8; MIRRED] {
    let mut bytes = [0; MIRRED];
    bytes[8..12].copy_from_slice(&TC_ACT_STOLEN.to_ne_bytes());
    bytes[20..24].copy_from_slice(&TCA_EGRESS_REDIR.to_ne_bytes());
    bytes[MIRRED_TARGET..].copy_from_slice(&to.to_ne_bytes());
    bytes
}

/// Removes the redirections whose target is gone: they would only drop what arrives.
pub fn remove_dead(netlink: &mut Netlink) -> Result<(), NetworkError> {
    let links = Request::dump(RTM_GETLINK, &LinkBody::default().encode());
    let indices = netlink.dump("the interfaces", &links, |payload| Some(LinkBody::split(payload)?.0.index))?;
    for index in indices.into_iter().filter(|&index| index != LOOPBACK) {
        let body = TrafficBody { index, parent: INGRESS_HANDLE, ..TrafficBody::default() };
        let filters = Request::dump(RTM_GETTFILTER, &body.encode());
        // An interface without an ingress discipline has no filters, which some kernels call an error.
        let targets = netlink.dump("the filters", &filters, |payload| Some(targets(payload))).unwrap_or_default();
        if targets.into_iter().flatten().any(|target| target == 0) {
            let body = TrafficBody { index, handle: INGRESS_HANDLE, parent: TC_H_INGRESS, info: 0 };
            let request = Request::change(RTM_DELQDISC, 0, &body.encode());
            netlink.change(&request).map_err(NetworkError::system("remove", "a redirection"))?;
        }
    }
    Ok(())
}

/// Where a filter's actions send frames to; zero when it is gone.
fn targets(payload: &[u8]) -> Vec<u32> {
    let nested =
        |bytes, wanted: u16| attributes(bytes).filter(move |(kind, _)| *kind == wanted).map(|(_, value)| value);
    let Some((_, filter)) = TrafficBody::split(payload) else { return Vec::new() };
    let options = filter.filter(|(kind, _)| *kind == TCA_OPTIONS).map(|(_, value)| value);
    let actions = options.flat_map(|options| nested(options, TCA_U32_ACT)).flat_map(attributes);
    let mirred =
        actions.map(|(_, action)| action).filter(|action| nested(action, TCA_ACT_KIND).any(|kind| kind == b"mirred\0"));
    let parameters = mirred.flat_map(|action| nested(action, TCA_ACT_OPTIONS));
    let parameters = parameters.flat_map(|options| nested(options, TCA_MIRRED_PARMS));
    parameters.filter_map(|parameters| number(parameters.get(MIRRED_TARGET..)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirections_target_is_read_back() {
        let payload = &redirect(3, 7).encode(1)[16..];
        assert_eq!(targets(payload), [7]);
        assert_eq!(targets(&redirect(3, 0).encode(1)[16..]), [0]);
        assert_eq!(targets(&payload[..40]), [0; 0]);
    }

    #[test]
    fn a_redirection_sees_every_protocol() {
        let body = TrafficBody::split(&redirect(3, 7).encode(1)[16..]).unwrap().0;
        assert_eq!((body.index, body.parent, body.info), (3, 0xffff_0000, 0x0001_0300));
    }
}
