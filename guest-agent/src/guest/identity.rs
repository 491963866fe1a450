//! What makes one guest different from another: name, time, randomness. The node gives all three.

#![expect(
    unsafe_code,
    reason = "RNDADDENTROPY and RNDRESEEDCRNG, since writing to the device would mix, but not credit; adjtimex"
)]

use crate::error::Error;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use std::io;
use std::os::fd::AsRawFd;
use std::time::{SystemTime, UNIX_EPOCH};

/// Most entropy that is taken. The generator's own pool is 32 bytes.
const MAX_ENTROPY: usize = 512;

const MAX_HOSTNAME: usize = 64;

const RNDADDENTROPY: libc::Ioctl = nix::request_code_write!(b'R', 3, 2 * size_of::<i32>());
const RNDRESEEDCRNG: libc::Ioctl = nix::request_code_none!(b'R', 7);

const NANOSECONDS: u64 = 1_000_000_000;

/// What a clock is not slewed by, in nanoseconds: it would take more than a quarter of an hour.
const STEP: u64 = NANOSECONDS / 2;

/// `struct rand_pool_info`, with its bytes.
#[repr(C)]
struct RandPoolInfo {
    entropy_bits: i32,
    size: i32,
    bytes: [u8; MAX_ENTROPY],
}

/// Makes the node's bytes part of everything random from now on.
///
/// The guest's memory may be a copy that other guests have too, with the state of the kernel's generator in it. Bytes that
/// are only added to a generator that is ready are not used before its next regular change, up to a minute later: the
/// reseed makes it forget its key now, and with it those of each processor and of the vDSO. No container runs before.
pub fn renew_randomness(bytes: &[u8]) -> Result<(), Error> {
    let bytes = &bytes[..bytes.len().min(MAX_ENTROPY)];
    if bytes.is_empty() {
        return Ok(());
    }
    let size = i32::try_from(bytes.len()).expect("at most MAX_ENTROPY");
    let mut pool = RandPoolInfo { entropy_bits: size * 8, size, bytes: [0; MAX_ENTROPY] };
    pool.bytes[..bytes.len()].copy_from_slice(bytes);
    let device = std::fs::File::open("/dev/random").map_err(Error::system("add entropy to", "/dev/random"))?;
    // SAFETY: the device is open, and the kernel reads `size` bytes of `pool.bytes`, which has at least that many.
    let added = unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const pool) };
    checked(added).map_err(Error::system("add entropy to", "/dev/random"))?;
    // SAFETY: the device is open, and the request takes no argument.
    let reseeded = unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) };
    checked(reseeded).map_err(Error::system("reseed", "/dev/random"))
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `time_ns`: nanoseconds since 1970; 0 leaves the clock alone.
pub fn set_clock(time_ns: u64) -> Result<(), Error> {
    if time_ns == 0 {
        return Ok(());
    }
    let seconds = libc::time_t::try_from(time_ns / NANOSECONDS).expect("fits in 35 bits");
    let nanoseconds = i64::try_from(time_ns % NANOSECONDS).expect("fits in 30 bits");
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, nanoseconds))
        .map_err(Error::system("set", "the clock"))
}

/// Nanoseconds since 1970.
pub fn clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Programs of the guest see time run faster or slower for a while, unless that would take too long.
pub fn adjust_clock(by_ns: i64) -> Result<(), Error> {
    if by_ns.unsigned_abs() >= STEP {
        return set_clock(clock().saturating_add_signed(by_ns));
    }
    if by_ns != 0 {
        slew(by_ns / 1000).map_err(Error::system("adjust", "the clock"))?;
    }
    Ok(())
}

/// Replaces what is left of an earlier one.
fn slew(microseconds: i64) -> io::Result<()> {
    // SAFETY: the structure is plain numbers, for which zero is a value.
    let mut request: libc::timex = unsafe { std::mem::zeroed() };
    request.modes = libc::ADJ_OFFSET_SINGLESHOT;
    request.offset = microseconds;
    // SAFETY: the kernel reads and writes `request`, which outlives the call.
    if unsafe { libc::adjtimex(&raw mut request) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// An empty name leaves the kernel's.
pub fn set_hostname(name: &str) -> Result<(), Error> {
    if name.len() > MAX_HOSTNAME || name.contains('\0') {
        return Err(Error::invalid(
            "hostname",
            name,
            format!("it is longer than {MAX_HOSTNAME} bytes or has a zero in it"),
        ));
    }
    if name.is_empty() {
        return Ok(());
    }
    nix::unistd::sethostname(name).map_err(Error::system("set the hostname to", name))
}

pub fn kernel_release() -> Result<String, Error> {
    let uname = nix::sys::utsname::uname().map_err(Error::system("read", "the kernel's release"))?;
    Ok(uname.release().to_string_lossy().into_owned())
}
