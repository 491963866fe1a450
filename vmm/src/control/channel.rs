//! The control socket: one packet is one message, with descriptors attached.
#![expect(unsafe_code, reason = "received descriptors arrive as numbers")]

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use vmm_protocol::{FdSlot, MAX_FDS, MAX_MESSAGE, Message, ProtocolError, Request};

#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("cannot receive a request")]
    Receive(#[source] Errno),
    #[error("cannot send a message")]
    Send(#[source] Errno),
    #[error("request does not fit: too long, or more than {MAX_FDS} descriptors")]
    Truncated,
    #[error("request makes no sense")]
    Protocol(#[from] ProtocolError),
    #[error("request names descriptor {0}, which it did not bring or names twice")]
    Descriptor(u8),
}

/// Descriptors of one request, each to be taken once. Those that are left are closed.
#[derive(Debug)]
pub struct Descriptors(Vec<Option<OwnedFd>>);

impl Descriptors {
    pub fn take(&mut self, slot: FdSlot) -> Result<OwnedFd, ChannelError> {
        let descriptor = self.0.get_mut(usize::from(slot.0)).and_then(Option::take);
        descriptor.ok_or(ChannelError::Descriptor(slot.0))
    }
}

/// A connected `SOCK_SEQPACKET` socket to the shim.
#[derive(Debug)]
pub struct Channel<S> {
    socket: S,
}

impl<S: AsFd> Channel<S> {
    pub fn new(socket: S) -> Self {
        Self { socket }
    }

    fn raw(&self) -> RawFd {
        self.socket.as_fd().as_raw_fd()
    }

    /// Waits for a request; `None` when the shim is gone.
    pub fn receive(&self) -> Result<Option<(Request, Descriptors)>, ChannelError> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let mut control = cmsg_space!([RawFd; MAX_FDS]);
        let (length, complete, descriptors) = loop {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let message = match recvmsg::<()>(self.raw(), &mut parts, Some(&mut control), flags) {
                Ok(message) => message,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(ChannelError::Receive(error)),
            };
            let mut descriptors = Vec::new();
            // An error says that there were more descriptors than fit.
            for part in message.cmsgs().map_err(|_| ChannelError::Truncated)? {
                if let ControlMessageOwned::ScmRights(numbers) = part {
                    // SAFETY: the kernel has just made these descriptors for us, and nobody else knows them.
                    descriptors.extend(numbers.iter().map(|number| Some(unsafe { OwnedFd::from_raw_fd(*number) })));
                }
            }
            let complete = !message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
            break (message.bytes, complete, Descriptors(descriptors));
        };
        if length == 0 {
            return Ok(None);
        }
        if !complete {
            return Err(ChannelError::Truncated);
        }
        Ok(Some((vmm_protocol::decode(&bytes[..length])?, descriptors)))
    }

    /// Sends a message. Waits while the shim is behind with reading.
    pub fn send(&self, message: &Message) -> Result<(), ChannelError> {
        let bytes = vmm_protocol::encode(message)?;
        loop {
            match sendmsg::<()>(self.raw(), &[IoSlice::new(&bytes)], &[], MsgFlags::MSG_NOSIGNAL, None) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(ChannelError::Send(error)),
            }
        }
    }
}

impl<S: AsFd> AsRawFd for Channel<S> {
    fn as_raw_fd(&self) -> RawFd {
        self.raw()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, ControlMessage, SockFlag, SockType, socketpair};
    use vmm_protocol::{Call, DeviceId};

    fn pair() -> (OwnedFd, Channel<OwnedFd>) {
        let (shim, vmm) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        (shim, Channel::new(vmm))
    }

    fn send(shim: &OwnedFd, bytes: &[u8], descriptors: &[RawFd]) {
        let rights = [ControlMessage::ScmRights(descriptors)];
        let control = if descriptors.is_empty() { &[][..] } else { &rights[..] };
        sendmsg::<()>(shim.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::empty(), None).unwrap();
    }

    fn detach() -> Vec<u8> {
        vmm_protocol::encode(&Request { id: 1, call: Call::Detach { device: DeviceId(2) } }).unwrap()
    }

    #[test]
    fn a_request_brings_its_descriptors_and_each_is_taken_once() {
        let (shim, channel) = pair();
        send(&shim, &detach(), &[shim.as_raw_fd(), shim.as_raw_fd()]);
        let (request, mut descriptors) = channel.receive().unwrap().unwrap();
        assert_eq!(request.id, 1);
        assert!(descriptors.take(FdSlot(1)).is_ok());
        assert!(descriptors.take(FdSlot(1)).is_err());
        assert!(descriptors.take(FdSlot(2)).is_err());
        assert!(descriptors.take(FdSlot(0)).is_ok());
    }

    #[test]
    fn the_most_descriptors_arrive() {
        let (shim, channel) = pair();
        send(&shim, &detach(), &[shim.as_raw_fd(); MAX_FDS]);
        let (_, mut descriptors) = channel.receive().unwrap().unwrap();
        assert!((0..MAX_FDS).all(|slot| descriptors.take(FdSlot(u8::try_from(slot).unwrap())).is_ok()));
    }

    #[test]
    fn a_closed_peer_is_the_end() {
        let (shim, channel) = pair();
        drop(shim);
        assert!(channel.receive().unwrap().is_none());
    }

    #[test]
    fn too_long_a_request_or_too_many_descriptors_are_refused() {
        let (shim, channel) = pair();
        send(&shim, &vec![b' '; MAX_MESSAGE + 1], &[]);
        assert!(matches!(channel.receive(), Err(ChannelError::Truncated)));
        send(&shim, &detach(), &[shim.as_raw_fd(); MAX_FDS + 3]);
        assert!(matches!(channel.receive(), Err(ChannelError::Truncated)));
    }

    #[test]
    fn bytes_that_are_no_request_are_refused() {
        let (shim, channel) = pair();
        send(&shim, b"{}", &[]);
        assert!(matches!(channel.receive(), Err(ChannelError::Protocol(_))));
    }
}
