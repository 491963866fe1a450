//! Tap devices: the VMM's end of an interface.
#![expect(unsafe_code, reason = "ioctl(2) on the tun device")]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// The kernel puts the first free number in.
const NAME: &CStr = c"bulkhead%d";

/// Makes a tap in the calling thread's network namespace. It is gone when its last descriptor is closed.
pub fn create() -> io::Result<(File, String)> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: every field of the structure is a number, an array or a union of such: zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME.to_bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the request reads and writes one `ifreq`, which this is.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let name: Vec<u8> =
        request.ifr_name.iter().map(|&byte| byte.cast_unsigned()).take_while(|&byte| byte != 0).collect();
    Ok((file, String::from_utf8_lossy(&name).into_owned()))
}
