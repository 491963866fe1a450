//! QEMU's microvm, as our VMM is compared with it: the same kernel, root image and size.

use crate::{GUEST_MIB, INIT_LINE, console, rest};
use anyhow::{Context, Result, anyhow};
use nix::unistd::{chroot, fchdir};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

/// What Debian's QEMU does when it is told nothing, but for devices that the guest does not need.
const ARGUMENTS: &str = "-nodefaults -no-user-config -no-reboot -display none -monitor none \
    -machine microvm,acpi=off,pit=off,pic=off,rtc=off,isa-serial=off,x-option-roms=off -accel kvm -cpu host -smp 1 \
    -chardev stdio,id=console,signal=off -device virtio-serial-device -device virtconsole,chardev=console";

/// What our VMM tells its guest, but for the root disk's name.
const COMMAND_LINE: &str = "root=/dev/vda rootfstype=erofs ro init=/init reboot=t panic=-1 tsc=reliable \
    quiet console=hvc0 8250.nr_uarts=0";

/// A Debian root with QEMU in it, and the guest's files below it.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    pub root: &'a str,
    pub kernel: &'a str,
    pub root_image: &'a str,
}

/// QEMU for this process's root, which is `files.root`. `append` is for the guest's kernel.
pub fn command(files: &Files<'_>, append: &str) -> Command {
    let disk = format!("if=none,id=root,format=raw,readonly=on,file={}", files.root_image);
    let mut command = Command::new("/usr/bin/qemu-system-x86_64");
    command.args(ARGUMENTS.split_whitespace()).args(["-m", &format!("{GUEST_MIB}M")]);
    command.args(["-kernel", files.kernel, "-append", &format!("{COMMAND_LINE} {append}")]);
    command.args(["-drive", &disk, "-device", "virtio-blk-device,drive=root"]);
    command
}

/// Becomes QEMU, with these arguments besides. Returns when that fails.
pub fn become_qemu(files: &Files<'_>, append: &str, arguments: &[String]) -> Result<()> {
    enter(files)?;
    let error = command(files, append).args(arguments).exec();
    Err(anyhow!(error).context("cannot run QEMU"))
}

/// Time until the guest's init has said that it runs.
pub fn init(files: &Files<'_>) -> Result<Duration> {
    within(files, || {
        let started = rest::settle()?;
        let mut child = command(files, "").stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("QEMU")?;
        let console = child.stdout.take().context("QEMU has no standard output")?;
        let found = console::wait_for(console, INIT_LINE);
        let time = started.elapsed();
        child.kill().ok();
        child.wait()?;
        found.map(|()| time)
    })
}

/// Does `work` in QEMU's root, and comes back.
pub fn within<T>(files: &Files<'_>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let outside = File::open("/")?;
    enter(files)?;
    let done = work();
    fchdir(&outside)?;
    chroot(".").context("cannot leave QEMU's root")?;
    done
}

fn enter(files: &Files<'_>) -> Result<()> {
    chroot(files.root).with_context(|| format!("cannot enter {}", files.root))?;
    std::env::set_current_dir("/").context("cannot enter QEMU's root")
}
