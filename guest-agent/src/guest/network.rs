//! The loopback interface: up, as programs expect. Other interfaces come with the pod's network.

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};
use std::io;
use std::os::fd::AsRawFd;

/// The loopback interface has the same index in every network namespace.
const LOOPBACK: i32 = 1;

const HEADER: usize = 16;
const LINK_MESSAGE: usize = 16;

/// One netlink request, `RTM_NEWLINK` that sets `IFF_UP`, and its acknowledgement.
pub(super) fn loopback_up() -> io::Result<()> {
    let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
    let route = socket(AddressFamily::Netlink, kind, flags, SockProtocol::NetlinkRoute)?;
    sendto(route.as_raw_fd(), &up_request(LOOPBACK), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0; 256];
    let length = recv(route.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    acknowledgement(&answer[..length])
}

fn up_request(index: i32) -> [u8; HEADER + LINK_MESSAGE] {
    let up = libc::IFF_UP.unsigned_abs().to_ne_bytes();
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK).expect("two low bits");
    let mut message = [0; HEADER + LINK_MESSAGE];
    // nlmsghdr: length, type, flags, sequence, port.
    message[0..4].copy_from_slice(&32_u32.to_ne_bytes());
    message[4..6].copy_from_slice(&libc::RTM_NEWLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&flags.to_ne_bytes());
    // ifinfomsg: family and kind are left zero; index, flags, and which flags are meant.
    message[20..24].copy_from_slice(&index.to_ne_bytes());
    message[24..28].copy_from_slice(&up);
    message[28..32].copy_from_slice(&up);
    message
}

/// `NLMSG_ERROR` with the number zero says that it worked.
fn acknowledgement(message: &[u8]) -> io::Result<()> {
    match message.get(HEADER..HEADER + 4) {
        Some(&[a, b, c, d]) => match i32::from_ne_bytes([a, b, c, d]) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        },
        _ => Err(io::Error::other("netlink answered with less than an acknowledgement")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_accepts_the_request_or_wants_root() {
        match loopback_up() {
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}"),
        }
    }

    #[test]
    fn the_kernels_error_is_passed_on() {
        let mut message = [0; 36];
        acknowledgement(&message).unwrap();
        message[16..20].copy_from_slice(&(-libc::ENODEV).to_ne_bytes());
        assert_eq!(acknowledgement(&message).unwrap_err().raw_os_error(), Some(libc::ENODEV));
        assert!(acknowledgement(&[]).is_err());
    }
}
