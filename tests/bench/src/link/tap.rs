//! The node's end of a guest's link.
#![expect(unsafe_code, reason = "ioctl(2) on the tun device")]

use super::interface;
use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

const NAME: &str = "bench0";

/// A tap as pods get it. It is gone when its last descriptor is closed.
#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// Makes it with the node's address on it.
    pub fn open(address: Ipv4Addr) -> Result<Self> {
        let file = File::options().read(true).write(true).open("/dev/net/tun").context("/dev/net/tun")?;
        // SAFETY: every field of the structure is a number, an array or a union of such: zeros are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(NAME.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR)?;
        // SAFETY: the request reads and writes one `ifreq`, which this is.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        ensure!(result == 0, "cannot make a tap: {}", std::io::Error::last_os_error());
        let index = fs::read_to_string(format!("/sys/class/net/{NAME}/ifindex"))?;
        interface::set_up(index.trim().parse()?, address)?;
        Ok(Self(file))
    }

    /// For a QEMU that inherits it.
    pub fn qemu_arguments(&self, mac: [u8; 6], options: &str) -> Result<[String; 4]> {
        fcntl(&self.0, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        let backend = format!("tap,id=net,fd={}{options}", self.0.as_raw_fd());
        let device = format!("virtio-net-device,netdev=net,mac={mac}");
        Ok(["-netdev".to_owned(), backend, "-device".to_owned(), device])
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
