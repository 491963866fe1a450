//! The pod's network in the guest: the interfaces that the node attached, made the same as those that CNI made there.
//!
//! Nothing is left to the kernel's own ideas: addresses bring no route with them, since the node's routes come one by one,
//! and IPv6 addresses are not probed for, since the node has done that.

mod plan;

use super::netlink::Netlink;
use crate::error::Error;
use plan::Step;
use route_netlink::{LOOPBACK, Request};
use std::path::Path;

pub use plan::Plan;

/// Up, as programs expect. Other interfaces come with the pod's network.
pub(super) fn loopback_up() -> Result<(), Error> {
    let failed = || Error::system("bring up", "lo");
    let mut netlink = Netlink::open().map_err(failed())?;
    netlink.change(&Request::bring_up(LOOPBACK)).map_err(failed())
}

/// Makes the network. Blocks for as long as the kernel takes.
pub fn apply(plan: &Plan) -> Result<(), Error> {
    let mut netlink = Netlink::open().map_err(Error::system("open", "the netlink socket"))?;
    for step in plan.steps() {
        match step {
            Step::Change { operation, object, request } => {
                netlink.change(request).map_err(Error::system(operation, object))?;
            }
            Step::NoLinkLocalAddress { interface } => no_link_local_address(interface)?,
        }
    }
    Ok(())
}

/// The address comes from the node, if there is one there.
fn no_link_local_address(interface: &str) -> Result<(), Error> {
    const NONE: &str = "1";
    let path = Path::new("/proc/sys/net/ipv6/conf").join(interface).join("addr_gen_mode");
    std::fs::write(&path, NONE).map_err(Error::system("write", path.display()))
}
