//! Network interfaces, brought up with one address each.

use anyhow::{Context, Result, bail};
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};
use route_netlink::numbers::{AF_INET, IFA_LOCAL, NLM_F_CREATE, NLM_F_REPLACE, RTM_NEWADDR};
use route_netlink::{AddressBody, LOOPBACK, Request, replies};
use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

const PREFIX: u8 = 24;

const PATIENCE: Duration = Duration::from_secs(5);

/// Gives an interface its address and brings it up.
pub fn set_up(index: u32, address: Ipv4Addr) -> Result<()> {
    let body = AddressBody { family: AF_INET, prefix: PREFIX, scope: 0, index };
    let add = Request::change(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &body.encode());
    ask(&add.address(IFA_LOCAL, address.into())).with_context(|| format!("cannot add the address {address}"))?;
    ask(&Request::bring_up(index)).context("cannot bring the interface up")
}

fn ask(request: &Request) -> Result<()> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    sendto(socket.as_raw_fd(), &request.encode(1), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0; 4096];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    replies(&answer[..length], 1).next().context("the kernel does not answer")??;
    Ok(())
}

/// In a guest whose init is the caller: its one interface, once it is there. A VMM may plug it while the guest runs.
pub fn find_guests() -> Result<u32> {
    if !Path::new("/sys/class").exists() {
        nix::mount::mount(Some("sys"), "/sys", Some("sysfs"), nix::mount::MsFlags::empty(), None::<&str>)?;
    }
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Some(index) = look()? {
            return Ok(index);
        }
        // A machine without PCI has its interface from the beginning.
        fs::write("/sys/bus/pci/rescan", "1").ok();
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("no network interface appeared");
}

fn look() -> Result<Option<u32>> {
    for interface in fs::read_dir("/sys/class/net")? {
        let interface = interface?.path();
        // Every kernel has a few that lead nowhere.
        let index: u32 = fs::read_to_string(interface.join("ifindex"))?.trim().parse()?;
        if index != LOOPBACK && interface.join("device").exists() {
            return Ok(Some(index));
        }
    }
    Ok(None)
}
