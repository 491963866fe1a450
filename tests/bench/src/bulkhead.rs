//! Our VMM without a shim: what is started, and when it is there.

use crate::timeline::{Timeline, initcall, kernel_line};
use crate::trace;
use crate::{GUEST_MIB, INIT_LINE, console};
use agent_protocol::AGENT_PORT;
use agent_protocol::agent::ConfigureRequest;
use agent_protocol::agent_ttrpc::AgentClient;
use anyhow::{Context, Result, anyhow, bail};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair};
use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, PipeReader};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vmm_protocol::{Call, Event, FdSlot, Jail, MAX_MESSAGE, Machine, Message, Reply, Request};

/// Nobody else's in the node.
const JAIL: Jail = Jail { uid: 70001, gid: 70001 };

/// ttrpc's own limit for the agent's answer. The whole measurement has one from outside.
const ANSWER: Duration = Duration::from_secs(100);

/// For the guest's kernel: each of its steps is a line.
const LOQUACIOUS: &str = "initcall_debug ignore_loglevel printk.time=1";

/// A VMM that was started a moment ago.
#[derive(Debug)]
pub struct Vmm {
    child: Child,
    shim: OwnedFd,
    console: Option<PipeReader>,
    started: Instant,
    requests: u32,
}

impl Vmm {
    /// Starts `program` and sends it its machine. The clock runs from before the kernel's file is opened.
    pub fn boot(program: &Path, kernel: &Path, root_image: &Path) -> Result<Self> {
        Self::boot_with(program, kernel, root_image, "")
    }

    fn boot_with(program: &Path, kernel: &Path, root_image: &Path, command_line: &str) -> Result<Self> {
        let started = Instant::now();
        let kvm = File::options().read(true).write(true).open("/dev/kvm").context("/dev/kvm")?;
        let open = |path: &Path| File::open(path).with_context(|| format!("cannot open {}", path.display()));
        let (kernel, root_image) = (open(kernel)?, open(root_image)?);
        let (console, console_end) = std::io::pipe()?;
        let (shim, vmm_end) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let mut command = Command::new(program);
        command.env_clear().stdin(Stdio::from(vmm_end)).stdout(Stdio::null());
        let child = command.spawn().with_context(|| format!("cannot run {}", program.display()))?;
        drop(command);
        let mut vmm = Self { child, shim, console: Some(console), started, requests: 0 };
        let machine = Machine {
            version: vmm_protocol::VERSION.into(),
            jail: JAIL,
            vcpus: 1,
            memory_mib: GUEST_MIB,
            command_line: command_line.to_owned(),
            kvm: FdSlot(0),
            kernel: FdSlot(1),
            root_image: FdSlot(2),
            console: FdSlot(3),
            debug_serial: false,
            template: false,
        };
        let descriptors = [kvm.as_fd(), kernel.as_fd(), root_image.as_fd(), console_end.as_fd()];
        vmm.send(Call::Boot(Box::new(machine)), &descriptors)?;
        Ok(vmm)
    }

    /// Time until the guest's init has said that it runs.
    pub fn init(mut self) -> Result<Duration> {
        let console = self.console.take().context("the console is read once")?;
        console::wait_for(console, INIT_LINE)?;
        Ok(self.started.elapsed())
    }

    /// Time until the agent has answered its first call, the one that the shim makes.
    pub fn agent(mut self) -> Result<Duration> {
        self.wait(|message| matches!(message, Message::Event(Event::AgentReady)))?;
        let stream = self.connect()?;
        configure(stream)?;
        Ok(self.started.elapsed())
    }

    fn connect(&mut self) -> Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let id = self.send(Call::Connect { port: AGENT_PORT, stream: FdSlot(0) }, &[theirs.as_fd()])?;
        self.wait(|message| matches!(message, Message::Reply(reply) if reply.id == id))?;
        Ok(ours)
    }

    /// Boots with the guest's kernel telling what it does, which takes longer, and puts all of it on one timeline.
    pub fn trace(program: &Path, kernel: &Path, root_image: &Path) -> Result<Timeline> {
        let begin = trace::now()?;
        let mut vmm = Self::boot_with(program, kernel, root_image, LOQUACIOUS)?;
        let sent = trace::now()?;
        let console = vmm.console.take().context("the console is read once")?;
        let reader = std::thread::spawn(move || stamped(console));
        // The first request's answer comes when the guest runs.
        vmm.wait(|message| matches!(message, Message::Reply(reply) if reply.id == 1))?;
        let booted = trace::now()?;
        vmm.wait(|message| matches!(message, Message::Event(Event::AgentReady)))?;
        let ready = trace::now()?;
        let stream = vmm.connect()?;
        let connected = trace::now()?;
        configure(stream)?;
        let configured = trace::now()?;
        drop(vmm);
        let lines = reader.join().map_err(|_| anyhow!("the console's reader panicked"))??;

        let mut timeline = Timeline::new(begin);
        timeline.span("shim", "open files, start the VMM", begin, sent);
        timeline.span("VMM", "jail, machine", sent, booted);
        timeline.span("guest", "kernel and agent, until it knocks", booted, ready);
        timeline.span("shim", "connect", ready, connected);
        timeline.span("shim", "Configure", connected, configured);
        add_kernel(&mut timeline, &lines, ready);
        Ok(timeline)
    }

    fn send(&mut self, call: Call, descriptors: &[BorrowedFd<'_>]) -> Result<u32> {
        self.requests += 1;
        let bytes = vmm_protocol::encode(&Request { id: self.requests, call })?;
        let numbers: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        sendmsg::<()>(self.shim.as_raw_fd(), &[IoSlice::new(&bytes)], &rights, MsgFlags::empty(), None)?;
        Ok(self.requests)
    }

    /// Reads messages until the wanted one comes. One that says that something failed is an error.
    fn wait(&self, wanted: impl Fn(&Message) -> bool) -> Result<()> {
        let mut bytes = vec![0; MAX_MESSAGE];
        loop {
            let length = recv(self.shim.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
            if length == 0 {
                bail!("the VMM ended");
            }
            match vmm_protocol::decode(&bytes[..length])? {
                Message::Reply(Reply { result: Err(error), .. }) => bail!("the VMM says: {error}"),
                Message::Event(Event::Stopped(reason)) => bail!("the machine stopped: {reason:?}"),
                message if wanted(&message) => return Ok(()),
                _ => {}
            }
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn configure(stream: UnixStream) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(configured(stream))
}

async fn configured(stream: UnixStream) -> Result<()> {
    stream.set_nonblocking(true)?;
    let stream = tokio::net::UnixStream::from_std(stream)?;
    let agent = AgentClient::new(ttrpc::r#async::Client::new(stream.into()));
    let request = ConfigureRequest { hostname: "bench".into(), entropy: vec![7; 64], ..Default::default() };
    agent.configure(ttrpc::context::with_duration(ANSWER), &request).await.context("the agent does not answer")?;
    Ok(())
}

/// Lines with the time at which they came.
fn stamped(console: PipeReader) -> Result<Vec<(Duration, String)>> {
    let mut lines = Vec::new();
    for line in BufReader::new(console).split(b'\n') {
        lines.push((trace::now()?, String::from_utf8_lossy(&line?).into_owned()));
    }
    Ok(lines)
}

/// The kernel's clock begins when the line that came soonest after it was written was written.
fn add_kernel(timeline: &mut Timeline, lines: &[(Duration, String)], ready: Duration) {
    let said: Vec<_> = lines.iter().filter_map(|(came, line)| Some((*came, kernel_line(line)?))).collect();
    let Some(zero) = said.iter().map(|(came, (at, _))| came.saturating_sub(*at)).min() else { return };
    let mut end = zero;
    for (_, (at, said)) in said {
        if let Some((name, took)) = initcall(said) {
            timeline.span("guest kernel: initcalls", name, (zero + at).saturating_sub(took), zero + at);
        }
        // The kernel says so when it hands over.
        if said.starts_with("Run /init as init process") {
            end = zero + at;
        }
    }
    if end > zero {
        timeline.span("guest kernel", "kernel", zero, end);
        timeline.span("agent", "init to ready", end, ready);
    }
}
