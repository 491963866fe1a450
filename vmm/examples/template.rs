//! Makes a template and machines from it, for developers: how long a restored machine takes until its agent answers.
//!
//! ```text
//! template <bulkhead-vmm> <vmlinux> <root image> [--memory MIB] [--count N] [--settle MILLISECONDS] [--directory PATH]
//! ```

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair};
use std::fs::File;
use std::io::{IoSlice, PipeReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vmm_protocol::{Call, Event, FdSlot, Jail, MAX_MESSAGE, Machine, Message, Request, Restore, VERSION};

/// The agent's calls.
const AGENT_PORT: u32 = 1024;
const JAIL: Jail = Jail { uid: 70001, gid: 70001 };

struct Options {
    files: Vec<String>,
    memory: u32,
    count: u32,
    settle: u64,
    directory: String,
}

fn options() -> Result<Options> {
    let mut options = Options { files: Vec::new(), memory: 128, count: 20, settle: 300, directory: "/run".into() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--memory" => options.memory = value()?.parse()?,
            "--count" => options.count = value()?.parse()?,
            "--settle" => options.settle = value()?.parse()?,
            "--directory" => options.directory = value()?,
            _ => options.files.push(argument),
        }
    }
    Ok(options)
}

/// A VMM without a machine.
struct Vmm {
    process: Child,
    control: OwnedFd,
    start: Instant,
}

impl Vmm {
    fn spawn(program: &str) -> Result<Self> {
        let start = Instant::now();
        let (control, vmm_end) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let process = Command::new(program).env_clear().stdin(Stdio::from(vmm_end)).stdout(Stdio::null()).spawn()?;
        Ok(Self { process, control, start })
    }

    fn send(&self, id: u32, call: Call, descriptors: &[RawFd]) -> Result<()> {
        let bytes = vmm_protocol::encode(&Request { id, call })?;
        let rights = [ControlMessage::ScmRights(descriptors)];
        sendmsg::<()>(self.control.as_raw_fd(), &[IoSlice::new(&bytes)], &rights, MsgFlags::empty(), None)?;
        Ok(())
    }

    fn receive(&self) -> Result<Message> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let length = recv(self.control.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
        ensure!(length > 0, "the VMM has ended");
        Ok(vmm_protocol::decode(&bytes[..length])?)
    }

    /// The answer to a request.
    fn done(&self, id: u32) -> Result<()> {
        match self.receive()? {
            Message::Reply(reply) if reply.id == id => {
                reply.result.map(drop).map_err(|error| anyhow::anyhow!("{error}"))
            }
            other => bail!("unexpected: {other:?}"),
        }
    }

    fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    fn end(mut self) -> Result<()> {
        drop(self.control);
        self.process.wait()?;
        Ok(())
    }
}

fn show(mut console: PipeReader) {
    std::thread::spawn(move || {
        let mut text = [0; 4096];
        while let Ok(length @ 1..) = console.read(&mut text) {
            print!("{}", String::from_utf8_lossy(&text[..length]));
        }
    });
}

fn open_kvm() -> Result<File> {
    File::options().read(true).write(true).open("/dev/kvm").context("/dev/kvm")
}

fn create(path: &str) -> Result<File> {
    File::options().read(true).write(true).create(true).truncate(true).open(path).with_context(|| path.to_owned())
}

fn make(options: &Options, memory: &str, state: &str) -> Result<()> {
    let [program, kernel, image] = options.files.as_slice() else {
        bail!("name the VMM, the kernel and the root image")
    };
    let vmm = Vmm::spawn(program)?;
    let (console, console_end) = std::io::pipe()?;
    show(console);
    let (kvm, kernel, image) = (open_kvm()?, File::open(kernel)?, File::open(image)?);
    let machine = Machine {
        version: VERSION.into(),
        jail: JAIL,
        vcpus: 1,
        memory_mib: options.memory,
        command_line: String::new(),
        kvm: FdSlot(0),
        kernel: FdSlot(1),
        root_image: FdSlot(2),
        console: FdSlot(3),
        debug_serial: false,
        template: true,
    };
    let descriptors = [kvm.as_raw_fd(), kernel.as_raw_fd(), image.as_raw_fd(), console_end.as_raw_fd()];
    vmm.send(1, Call::Boot(Box::new(machine)), &descriptors)?;
    vmm.done(1)?;
    let ready = vmm.receive()?;
    ensure!(matches!(ready, Message::Event(Event::AgentReady)), "{ready:?}");
    println!("cold: agent ready after {:.4} s", vmm.seconds());
    std::thread::sleep(Duration::from_millis(options.settle));
    let (memory, state) = (create(memory)?, create(state)?);
    let call = Call::Snapshot { memory: FdSlot(0), state: FdSlot(1) };
    let before = Instant::now();
    vmm.send(2, call, &[memory.as_raw_fd(), state.as_raw_fd()])?;
    vmm.done(2).context("snapshot")?;
    println!(
        "saved in {:.4} s: memory {} KiB, of which {} KiB are blocks; state {} bytes",
        before.elapsed().as_secs_f64(),
        memory.metadata()?.len() >> 10,
        memory.metadata()?.blocks() / 2,
        state.metadata()?.len()
    );
    vmm.end()
}

/// `Configure` with nothing in it, as ttrpc has it on the wire.
fn configure(stream: &mut UnixStream) -> Result<()> {
    let mut request = Vec::new();
    for (field, text) in [(1, "bulkhead.agent.Agent"), (2, "Configure")] {
        request.extend([field << 3 | 2, u8::try_from(text.len())?]);
        request.extend(text.as_bytes());
    }
    let mut message = u32::try_from(request.len())?.to_be_bytes().to_vec();
    message.extend(1_u32.to_be_bytes());
    message.extend([1, 0]);
    message.extend(request);
    stream.write_all(&message)?;
    let mut header = [0; 10];
    stream.read_exact(&mut header)?;
    let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
    ensure!(length < 4096, "answer of {length} bytes");
    let mut answer = vec![0; usize::try_from(length)?];
    stream.read_exact(&mut answer)?;
    let named = answer.windows(VERSION.len()).any(|part| part == VERSION.as_bytes());
    ensure!(named, "{}", String::from_utf8_lossy(&answer));
    Ok(())
}

fn restore(options: &Options, memory: &str, state: &str) -> Result<(f64, f64)> {
    let vmm = Vmm::spawn(&options.files[0])?;
    let (console, console_end) = std::io::pipe()?;
    show(console);
    let (kvm, image) = (open_kvm()?, File::open(&options.files[2])?);
    let (memory, state) = (File::open(memory)?, File::open(state)?);
    let restore = Restore {
        version: VERSION.into(),
        jail: JAIL,
        kvm: FdSlot(0),
        memory: FdSlot(1),
        state: FdSlot(2),
        root_image: FdSlot(3),
        console: FdSlot(4),
    };
    let descriptors = [&kvm, &memory, &state, &image].map(AsRawFd::as_raw_fd);
    let descriptors = [&descriptors[..], &[console_end.as_raw_fd()]].concat();
    vmm.send(1, Call::Restore(Box::new(restore)), &descriptors)?;
    drop(console_end);
    let (mut stream, guest_end) = UnixStream::pair()?;
    vmm.send(2, Call::Connect { port: AGENT_PORT, stream: FdSlot(0) }, &[guest_end.as_raw_fd()])?;
    drop(guest_end);
    vmm.done(1)?;
    let running = vmm.seconds();
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    vmm.done(2)?;
    configure(&mut stream)?;
    let answered = vmm.seconds();
    let status = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", vmm.process.id()))?;
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).unwrap_or("?").to_owned()
    };
    println!(
        "  private {} KiB, anonymous {} KiB, shared {} KiB",
        field("Private_Dirty"),
        field("Anonymous"),
        field("Shared_Clean")
    );
    vmm.end()?;
    Ok((running, answered))
}

fn main() -> Result<()> {
    let options = options()?;
    let (memory, state) =
        (format!("{}/template-memory", options.directory), format!("{}/template-state", options.directory));
    make(&options, &memory, &state)?;
    for number in 1..=options.count {
        let (running, answered) = restore(&options, &memory, &state)?;
        println!("restore {number}: runs after {running:.4} s, agent answers after {answered:.4} s");
    }
    Ok(())
}
