//! The host's end of the link.
#![expect(unsafe_code, reason = "ioctl(2) on a tap device")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6};

/// Where frames come from and go to: one frame per read or write, with a header before it.
pub trait Link: AsFd + Send + 'static {
    /// Tells the host what the guest takes upon itself ([`offloads`]).
    fn set_offloads(&self, offloads: libc::c_uint) -> io::Result<()>;
}

/// A tap device with `IFF_VNET_HDR`.
#[derive(Clone, Debug)]
pub struct Tap(Arc<File>);

impl Tap {
    pub fn new(file: File) -> Self {
        Self(Arc::new(file))
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Link for Tap {
    fn set_offloads(&self, offloads: libc::c_uint) -> io::Result<()> {
        // SAFETY: this request takes a number and touches no memory of ours.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// What a guest with these features takes upon itself, in the tap's terms.
pub fn offloads(features: u64) -> libc::c_uint {
    let agreed = |feature: u32| features & 1 << feature != 0;
    if !agreed(VIRTIO_NET_F_GUEST_CSUM) {
        // Segments without checksums need both.
        return 0;
    }
    let mut offloads = libc::TUN_F_CSUM;
    if agreed(VIRTIO_NET_F_GUEST_TSO4) {
        offloads |= libc::TUN_F_TSO4;
    }
    if agreed(VIRTIO_NET_F_GUEST_TSO6) {
        offloads |= libc::TUN_F_TSO6;
    }
    offloads
}
