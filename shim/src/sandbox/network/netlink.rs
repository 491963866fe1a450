//! The socket to the network configuration of the namespace that it was opened in.

use super::NetworkError;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use route_netlink::{Reply, Request, replies};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// The kernel fills datagrams of a dump up to this size, if the reader has the room.
const DATAGRAM: usize = 32 * 1024;

/// The kernel answers from the system call that asks; this is for one that has no memory.
const ANSWER: i64 = 10;

#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub fn open() -> Result<Self, NetworkError> {
        let open = || {
            let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
            let socket = socket(AddressFamily::Netlink, kind, flags, SockProtocol::NetlinkRoute)?;
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(NetworkError::system::<nix::Error>("open", "the netlink socket"))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Makes one change.
    pub fn change(&mut self, request: &Request) -> io::Result<()> {
        self.ask(request, |_, _| {})
    }

    /// Reads all objects of a kind. Those that `read` does not understand are left out.
    pub fn dump<T>(
        &mut self,
        what: &'static str,
        request: &Request,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetworkError> {
        let mut objects = Vec::new();
        let result = self.ask(request, |_, payload| objects.extend(read(payload)));
        result.map(|()| objects).map_err(NetworkError::system("read", what))
    }

    fn ask(&mut self, request: &Request, mut object: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.socket.as_raw_fd(), &request.encode(self.sequence), &kernel, MsgFlags::empty())?;
        let mut datagram = vec![0; DATAGRAM];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut datagram, MsgFlags::empty())?;
            for reply in replies(&datagram[..length], self.sequence) {
                match reply? {
                    Reply::End => return Ok(()),
                    Reply::Object { kind, payload } => object(kind, payload),
                }
            }
        }
    }
}
