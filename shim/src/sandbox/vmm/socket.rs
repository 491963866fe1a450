//! The control socket: one packet is one message.
#![expect(unsafe_code, reason = "tokio wants the promise that a registered descriptor stays open")]

use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use vmm_protocol::MAX_MESSAGE;

#[derive(Debug)]
pub(super) struct Socket {
    socket: AsyncFd<OwnedFd>,
}

impl Socket {
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` is one open descriptor until it is dropped, and the `AsyncFd` owns it.
        let socket = unsafe { AsyncFd::register(socket) }?;
        Ok(Self { socket })
    }

    /// Sends one packet with its descriptors.
    pub async fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let send = |socket: &OwnedFd| {
            let rights = [ControlMessage::ScmRights(&raw)];
            let control = if raw.is_empty() { &[][..] } else { &rights[..] };
            Ok(sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)?)
        };
        self.socket.async_io(Interest::WRITABLE, send).await.map(drop)
    }

    /// Receives one packet; `None` at the end. Descriptors that came with it are discarded by the kernel, as there is no
    /// room for them.
    pub async fn receive(&self) -> io::Result<Option<Vec<u8>>> {
        let mut packet = vec![0; MAX_MESSAGE];
        // MSG_TRUNC: the length is the packet's own, even when it did not fit.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
        let length = loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| Ok(recv(socket.as_raw_fd(), &mut packet, flags)?)) {
                Ok(result) => break result?,
                Err(_would_block) => {}
            }
        };
        match length {
            0 => Ok(None),
            length if length > packet.len() => {
                Err(io::Error::new(io::ErrorKind::InvalidData, format!("packet of {length} bytes")))
            }
            length => {
                packet.truncate(length);
                Ok(Some(packet))
            }
        }
    }
}
