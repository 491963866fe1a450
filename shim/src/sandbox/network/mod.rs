//! The pod's network on the node: whatever CNI left in the pod's network namespace becomes the guest's.
//!
//! ```text
//! CNI's interface (eth0) ◄── ingress: redirect ──► tap ◄── VMM ──► the guest's eth0
//! ```
//!
//! ```text
//! Snapshot     what the kernel says about the namespace
//! NetworkPlan  which interfaces, addresses, routes and neighbours the guest gets; pure, refuses what it cannot have
//! Link         a tap for each interface, and the redirection in both directions
//! guest        the same plan as the agent is told it
//! ```
//!
//! The guest has the MAC address and the IP addresses of CNI's interface, which keeps them: frames that arrive never reach
//! the namespace's own stack. The tap's descriptor goes to the VMM; the tap ends with it. What stays then, a redirection to
//! nowhere, is found by that and removed ([`remove`]), so that nothing needs to be remembered about it.

mod error;
mod guest;
mod namespace;
mod netlink;
mod plan;
mod plug;
mod redirect;
mod snapshot;
mod tap;

pub(super) use error::NetworkError;
pub(super) use plug::plug;

use super::forward::Listeners;
use guest::network_request;
use namespace::inside;
use netlink::Netlink;
use plan::NetworkPlan;
use route_netlink::{LOOPBACK, Request};
use snapshot::Snapshot;
use std::fs::File;
use std::path::Path;

/// A pod's network, ready for its microVM. The default is none.
#[derive(Debug, Default)]
pub(super) struct PodNetwork {
    pub plan: NetworkPlan,
    /// One for each of the plan's interfaces, in the same order.
    pub taps: Vec<File>,
    /// Where connections to the pod's loopback addresses arrive; `None` if this node cannot have it.
    pub listeners: Option<Listeners>,
}

/// Reads the namespace and connects its interfaces to taps. Blocks for some milliseconds. When it fails, [`remove`] takes
/// back what it did.
pub(super) fn connect(netns: &Path) -> Result<PodNetwork, NetworkError> {
    inside(netns, || {
        let mut netlink = Netlink::open()?;
        let plan = NetworkPlan::new(Snapshot::take(&mut netlink)?)?;
        let taps = plan.interfaces.iter().map(|interface| redirect::connect(&mut netlink, interface));
        let taps = taps.collect::<Result<_, _>>()?;
        loopback_up(&mut netlink)?;
        Ok(PodNetwork { plan, taps, listeners: listeners() })
    })
}

/// A pod without port forwarding is better than none.
fn listeners() -> Option<Listeners> {
    let listeners = Listeners::open();
    listeners.inspect_err(|error| tracing::warn!(%error, "connections cannot be forwarded to this pod")).ok()
}

/// Removes redirections to taps that are gone. Idempotent; a namespace that is gone, or never was a pod's, is fine.
pub(super) fn remove(netns: &Path) -> Result<(), NetworkError> {
    match inside(netns, || redirect::remove_dead(&mut Netlink::open()?)) {
        Err(NetworkError::NoNamespace { .. } | NetworkError::NotANamespace { .. } | NetworkError::NodesOwn { .. }) => {
            Ok(())
        }
        result => result,
    }
}

/// Port forwarding uses it, and CNI may have left it down.
fn loopback_up(netlink: &mut Netlink) -> Result<(), NetworkError> {
    netlink.change(&Request::bring_up(LOOPBACK)).map_err(NetworkError::system("bring up", "lo"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_was_refused_its_namespace_has_nothing_to_remove() {
        for path in ["/nowhere", "/proc/self/status", "/proc/self/ns/net"] {
            connect(Path::new(path)).unwrap_err();
            remove(Path::new(path)).unwrap();
        }
    }
}
