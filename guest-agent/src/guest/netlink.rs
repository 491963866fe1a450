//! The socket to the kernel's network configuration.

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};
use route_netlink::{Reply, Request, replies};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Longer than an acknowledgement with the request that it is about.
const ANSWER: usize = 8 * 1024;

#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub fn open() -> io::Result<Self> {
        let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let socket = socket(AddressFamily::Netlink, kind, flags, SockProtocol::NetlinkRoute)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Has the kernel make one change. It answers before the send returns, so that nothing is waited for.
    pub fn change(&mut self, request: &Request) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.socket.as_raw_fd(), &request.encode(self.sequence), &kernel, MsgFlags::empty())?;
        let mut answer = [0; ANSWER];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
            for reply in replies(&answer[..length], self.sequence) {
                if reply? == Reply::End {
                    return Ok(());
                }
            }
        }
    }
}
