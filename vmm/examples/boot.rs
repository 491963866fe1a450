//! Plays the shim for one machine, for developers: boots a kernel with a root image, shows its console and what the
//! VMM says, and can attach a disk and connect to a port of the guest.
//!
//! ```text
//! boot <bulkhead-vmm> <vmlinux> <root image> [--serial] [--memory MIB] [--vcpus N] [--disk IMAGE] [--append TEXT]
//! ```

use anyhow::{Context, Result, bail};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair};
use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::process::{Command, Stdio};
use std::time::Instant;
use vmm_protocol::{Call, Device, Event, FdSlot, Jail, MAX_MESSAGE, Machine, Message, Request};

struct Options {
    files: Vec<String>,
    serial: bool,
    memory: u32,
    vcpus: u8,
    disk: Option<String>,
    append: String,
}

fn options() -> Result<Options> {
    let mut options =
        Options { files: Vec::new(), serial: false, memory: 256, vcpus: 1, disk: None, append: String::new() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--serial" => options.serial = true,
            "--memory" => options.memory = value()?.parse()?,
            "--vcpus" => options.vcpus = value()?.parse()?,
            "--disk" => options.disk = Some(value()?),
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

fn show_console(console: std::io::PipeReader) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut console = console;
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = console.read(&mut bytes) {
            let mut output = std::io::stdout().lock();
            if output.write_all(&bytes[..length]).and_then(|()| output.flush()).is_err() {
                return;
            }
        }
    })
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
    };
    let descriptors = [kvm.as_raw_fd(), kernel.as_raw_fd(), image.as_raw_fd(), console_end.as_raw_fd()];
    send(&shim, 1, Call::Boot(Box::new(machine)), &descriptors)?;
    drop((kvm, kernel, image, console_end));
    let console = show_console(console);

    while let Some(message) = receive(&shim)? {
        eprintln!("[{:6.3}] {message:?}", start.elapsed().as_secs_f64());
        match message {
            Message::Reply(reply) if reply.id == 1 && reply.result.is_ok() => {
                if let Some(path) = &options.disk {
                    let disk = File::options().read(true).write(true).open(path).context("disk")?;
                    let device = Device::Block { image: FdSlot(0), read_only: false };
                    send(&shim, 2, Call::Attach(device), &[disk.as_raw_fd()])?;
                }
            }
            Message::Event(Event::Stopped(_)) => break,
            _ => {}
        }
    }
    let status = child.wait()?;
    drop(console.join());
    eprintln!("[{:6.3}] VMM ended: {status}", start.elapsed().as_secs_f64());
    Ok(())
}
