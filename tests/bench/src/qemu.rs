//! QEMU's microvm, with the kernel and the root image that our VMM gets in the same row.

use crate::{GUEST_MIB, INIT_LINE, console};
use anyhow::{Context, Result};
use nix::unistd::{chroot, fchdir};
use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// As microvm is started in `images/bench/measure`, where the comparison of disks is made, without that disk.
const ARGUMENTS: &str = "-nodefaults -no-user-config -no-reboot -display none -monitor none \
    -machine microvm,acpi=off,pit=off,pic=off,rtc=off,isa-serial=off,x-option-roms=off -accel kvm -cpu host -smp 1 \
    -chardev stdio,id=console,signal=off -device virtio-serial-device -device virtconsole,chardev=console";

/// What our VMM tells its guest, but for the root disk's name.
const COMMAND_LINE: &str = "root=/dev/vda rootfstype=erofs ro init=/init reboot=t panic=-1 tsc=reliable \
    quiet console=hvc0 8250.nr_uarts=0";

/// A Debian root with QEMU in it, and the guest's files below it.
#[derive(Debug)]
pub struct Files<'a> {
    pub root: &'a str,
    pub kernel: &'a str,
    pub root_image: &'a str,
}

/// Time until the guest's init has said that it runs.
pub fn init(files: &Files<'_>) -> Result<Duration> {
    let outside = File::open("/")?;
    chroot(files.root).with_context(|| format!("cannot enter {}", files.root))?;
    std::env::set_current_dir("/")?;
    let measured = measure(files);
    fchdir(&outside)?;
    chroot(".").context("cannot leave QEMU's root")?;
    measured
}

fn measure(files: &Files<'_>) -> Result<Duration> {
    let disk = format!("if=none,id=root,format=raw,readonly=on,file={}", files.root_image);
    let started = Instant::now();
    let mut command = Command::new("/usr/bin/qemu-system-x86_64");
    command.args(ARGUMENTS.split_whitespace()).args(["-m", &format!("{GUEST_MIB}M")]);
    command.args(["-kernel", files.kernel, "-append", COMMAND_LINE]);
    command.args(["-drive", &disk, "-device", "virtio-blk-device,drive=root"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run QEMU")?;
    let console = child.stdout.take().context("QEMU has no standard output")?;
    let found = console::wait_for(console, INIT_LINE);
    let time = started.elapsed();
    child.kill().ok();
    child.wait()?;
    found.map(|()| time)
}
