//! Plays the shim for one machine, for developers: boots a kernel with a root image, shows its console and what the
//! VMM says. A guest that prints `attach disk` gets a disk, and loses it when it prints `detach disk`.
//!
//! ```text
//! boot <bulkhead-vmm> <vmlinux> <root image> [--serial] [--memory MIB] [--vcpus N] [--append TEXT] [--disk IMAGE] [--times]
//! ```
//!
//! `--times` prints the microseconds to each message of the VMM and ends the machine when its agent is ready.

use anyhow::{Context, Result, bail};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair};
use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, PipeReader};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::process::{Command, Stdio};
use std::time::Instant;
use vmm_protocol::{Call, Device, DeviceId, Event, FdSlot, Jail, MAX_MESSAGE, Machine, Message, RateLimit, Request};

struct Options {
    files: Vec<String>,
    serial: bool,
    memory: u32,
    vcpus: u8,
    disk: Option<String>,
    append: String,
    times: bool,
}

fn options() -> Result<Options> {
    let mut options = Options {
        files: Vec::new(),
        serial: false,
        memory: 256,
        vcpus: 1,
        disk: None,
        append: String::new(),
        times: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--serial" => options.serial = true,
            "--memory" => options.memory = value()?.parse()?,
            "--vcpus" => options.vcpus = value()?.parse()?,
            "--disk" => options.disk = Some(value()?),
            "--times" => options.times = true,
            "--append" => options.append = value()?,
            _ => options.files.push(argument),
        }
    }
    Ok(options)
}

fn send(shim: &OwnedFd, id: u32, call: Call, descriptors: &[RawFd]) -> Result<()> {
    let bytes = vmm_protocol::encode(&Request { id, call })?;
    let rights = [ControlMessage::ScmRights(descriptors)];
    sendmsg::<()>(shim.as_raw_fd(), &[IoSlice::new(&bytes)], &rights, MsgFlags::empty(), None)?;
    Ok(())
}

fn receive(shim: &OwnedFd) -> Result<Option<Message>> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let length = recv(shim.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
    Ok(if length == 0 { None } else { Some(vmm_protocol::decode(&bytes[..length])?) })
}

/// Prints what the guest says, and does what it asks for.
fn show_console(console: PipeReader, start: Instant, shim: &OwnedFd, disk: Option<&str>) -> Result<()> {
    let mut console = BufReader::new(console);
    let mut line = Vec::new();
    while console.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        print!("[{:6.3}] {text}", start.elapsed().as_secs_f64());
        if let Some(path) = disk.filter(|_| text.starts_with("attach disk")) {
            let disk = File::options().read(true).write(true).open(path).context("disk")?;
            let device = Device::Block { image: FdSlot(0), read_only: false, limit: RateLimit::default() };
            send(shim, 2, Call::Attach(device), &[disk.as_raw_fd()])?;
        } else if text.starts_with("detach disk") {
            send(shim, 3, Call::Detach { device: DeviceId(0) }, &[])?;
        }
        line.clear();
    }
    Ok(())
}

fn main() -> Result<()> {
    let options = options()?;
    let [vmm, kernel, image] = options.files.as_slice() else { bail!("name the VMM, the kernel and the root image") };
    let start = Instant::now();
    let kvm = File::options().read(true).write(true).open("/dev/kvm").context("/dev/kvm")?;
    let kernel = File::open(kernel).context("kernel")?;
    let image = File::open(image).context("root image")?;
    let (console, console_end) = std::io::pipe()?;
    let (shim, vmm_end) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let mut child =
        Command::new(vmm).env_clear().stdin(Stdio::from(vmm_end)).stdout(Stdio::null()).spawn().context("VMM")?;
    let machine = Machine {
        version: vmm_protocol::VERSION.into(),
        jail: Jail { uid: 70001, gid: 70001 },
        vcpus: options.vcpus,
        memory_mib: options.memory,
        command_line: options.append.clone(),
        kvm: FdSlot(0),
        kernel: FdSlot(1),
        root_image: FdSlot(2),
        console: FdSlot(3),
        debug_serial: options.serial,
        template: false,
    };
    let descriptors = [kvm.as_raw_fd(), kernel.as_raw_fd(), image.as_raw_fd(), console_end.as_raw_fd()];
    send(&shim, 1, Call::Boot(Box::new(machine)), &descriptors)?;
    drop((kvm, kernel, image, console_end));
    let console = {
        let shim = shim.try_clone()?;
        std::thread::spawn(move || show_console(console, start, &shim, options.disk.as_deref()))
    };

    while let Some(message) = receive(&shim)? {
        if options.times {
            println!("{:7} us {message:?}", start.elapsed().as_micros());
        } else {
            println!("[{:6.3}] {message:?}", start.elapsed().as_secs_f64());
        }
        if options.times && matches!(message, Message::Event(Event::AgentReady)) {
            child.kill().context("VMM")?;
            break;
        }
        if matches!(message, Message::Event(Event::Stopped(_))) {
            break;
        }
    }
    let status = child.wait()?;
    console.join().map_err(|_| anyhow::anyhow!("console thread panicked"))??;
    println!("[{:6.3}] VMM ended: {status}", start.elapsed().as_secs_f64());
    Ok(())
}
