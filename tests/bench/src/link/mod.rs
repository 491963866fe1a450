//! The network of a VMM alone: a guest and its node, over a tap, with nothing else between them.
//!
//! Both VMMs boot the same kernel and the same init, which serves what the node asks for ([`traffic`]). The node's one processor
//! does everything, so that time divided by bytes is what a byte costs in guest, VMM and node together.

mod interface;
mod tap;
mod traffic;

use crate::sample::tell;
use crate::vmm::{self, Size, Vmm};
use crate::{console, qemu};
use anyhow::{Context, Result};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::process::Stdio;
use std::time::Duration;
use tap::Tap;
use vmm_protocol::{Call, Device, FdSlot};

const NODE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const MTU: u16 = 1500;

/// Tells the guest's init that there is a network: the kernel gives it what it does not know itself as a variable.
const VARIABLE: &str = "bench_network";
const COMMAND_LINE: &str = "bench_network=1";

/// What the guest's init prints when it can be asked.
const LISTENS: &str = "bench: the guest listens";

const MIB: u32 = 1 << 20;
/// A stream's congestion window and buffers have grown after these.
const WARM_UP: u32 = 4 * MIB;
const MEASURED: u32 = 32 * MIB;

const ROUND_TRIPS: u32 = 400;
/// Fewer than the tap's queue holds.
const IN_FLIGHT: u32 = 32;

/// Our VMM.
pub fn bulkhead(files: &vmm::Files<'_>, measure: fn() -> Result<()>) -> Result<()> {
    let tap = Tap::open(NODE)?;
    let mut vmm = Vmm::boot(files, &Size { command_line: COMMAND_LINE, ..Size::MEASURED })?;
    let device = Device::Net { tap: FdSlot(0), mac: MAC, mtu: MTU };
    let id = vmm.send(Call::Attach(device), &[tap.as_fd()])?;
    vmm.answered(id)?;
    console::wait_for(vmm.console()?, LISTENS)?;
    measure()
}

/// QEMU's microvm with `options` for its tap.
pub fn microvm(files: &qemu::Files<'_>, options: &str, measure: fn() -> Result<()>) -> Result<()> {
    let tap = Tap::open(NODE)?;
    let arguments = tap.qemu_arguments(MAC, options)?;
    let mut child = qemu::within(files, || {
        let mut command = qemu::command(files, COMMAND_LINE);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run QEMU")
    })?;
    let console = child.stdout.take().context("QEMU has no standard output")?;
    let measured = console::wait_for(console, LISTENS).and_then(|()| measure());
    child.kill().ok();
    child.wait()?;
    measured
}

pub fn streams() -> Result<()> {
    traffic::download(GUEST, WARM_UP)?;
    tell("link-down", nanoseconds(traffic::download(GUEST, MEASURED)?) / f64::from(MEASURED));
    traffic::upload(GUEST, WARM_UP)?;
    tell("link-up", nanoseconds(traffic::upload(GUEST, MEASURED)?) / f64::from(MEASURED));
    Ok(())
}

pub fn datagrams() -> Result<()> {
    traffic::echoes(GUEST, ROUND_TRIPS / 10, 1)?;
    let latency = traffic::echoes(GUEST, ROUND_TRIPS, 1)?;
    tell("link-latency", nanoseconds(latency) / 1e3 / f64::from(ROUND_TRIPS));
    let many = traffic::echoes(GUEST, ROUND_TRIPS / 4, IN_FLIGHT)?;
    tell("link-datagrams", nanoseconds(many) / 1e3 / f64::from(ROUND_TRIPS / 4 * IN_FLIGHT));
    Ok(())
}

fn nanoseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}

/// The guest's part: ends only with an error. Nothing, when the machine was not started for this.
pub fn serve_guest() -> Result<()> {
    if std::env::var_os(VARIABLE).is_none() {
        return Ok(());
    }
    let index = interface::find_guests()?;
    interface::set_up(index, GUEST)?;
    let listener = TcpListener::bind((GUEST, traffic::PORT)).context("cannot listen")?;
    let datagrams = UdpSocket::bind((GUEST, traffic::PORT)).context("cannot receive datagrams")?;
    println!("{LISTENS}");
    traffic::serve(&listener, datagrams)
}
