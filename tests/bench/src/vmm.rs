//! Plays the shim for one VMM: starts it, speaks its protocol, and asks its guest's agent.

use agent_protocol::AGENT_PORT;
use agent_protocol::agent::{ConfigureRequest, Moments};
use agent_protocol::agent_ttrpc::AgentClient;
use anyhow::{Context, Result, bail};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, recv, sendmsg, shutdown, socketpair,
};
use std::fs::File;
use std::io::{IoSlice, PipeReader};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use vmm_protocol::{
    Answer, Call, Device, DeviceId, Event, FdSlot, Jail, MAX_MESSAGE, Machine, Message, Moment, RateLimit, Reply,
    Request, Restore,
};

/// Nobody else's in the node.
const JAIL: Jail = Jail { uid: 70001, gid: 70001 };

/// ttrpc's own limit for the agent's answer. The whole measurement has one from outside.
const ANSWER: Duration = Duration::from_secs(100);

/// What the machine is made of.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    pub program: &'a Path,
    pub kernel: &'a Path,
    pub root_image: &'a Path,
}

/// What the machine is.
#[derive(Clone, Copy, Debug)]
pub struct Size<'a> {
    pub vcpus: u8,
    pub memory_mib: u32,
    /// For the guest's kernel, besides the VMM's own.
    pub command_line: &'a str,
    /// With a serial port, which shows the kernel's first messages.
    pub serial: bool,
}

impl Size<'_> {
    /// The guest of the targets.
    pub const MEASURED: Self = Self { vcpus: 1, memory_mib: crate::GUEST_MIB, command_line: "", serial: false };
}

/// A saved machine.
#[derive(Clone, Debug)]
pub struct Template {
    pub memory: PathBuf,
    pub state: PathBuf,
}

impl Template {
    pub fn below(directory: &Path) -> Self {
        Self { memory: directory.join("memory"), state: directory.join("state") }
    }
}

/// A VMM that was started a moment ago.
#[derive(Debug)]
pub struct Vmm {
    child: Child,
    shim: OwnedFd,
    console: Option<PipeReader>,
    started: Instant,
    requests: AtomicU32,
}

impl Vmm {
    /// Starts the VMM and sends it its machine. The clock runs from before the kernel's file is opened.
    pub fn boot(files: &Files<'_>, size: &Size<'_>) -> Result<Self> {
        Self::boot_as(files, size, false)
    }

    /// Boots a machine that can be saved.
    pub fn boot_template(files: &Files<'_>, size: &Size<'_>) -> Result<Self> {
        Self::boot_as(files, size, true)
    }

    fn boot_as(files: &Files<'_>, size: &Size<'_>, template: bool) -> Result<Self> {
        let started = Instant::now();
        let (kvm, kernel, root_image) = (open_kvm()?, open(files.kernel)?, open(files.root_image)?);
        let (vmm, console) = Self::spawn(files.program, started)?;
        let machine = Machine {
            version: vmm_protocol::VERSION.into(),
            jail: JAIL,
            vcpus: size.vcpus,
            memory_mib: size.memory_mib,
            growth_mib: 0,
            command_line: size.command_line.to_owned(),
            kvm: FdSlot(0),
            kernel: FdSlot(1),
            root_image: FdSlot(2),
            console: FdSlot(3),
            debug_serial: size.serial,
            template,
        };
        let descriptors = [kvm.as_fd(), kernel.as_fd(), root_image.as_fd(), console.as_fd()];
        vmm.send(Call::Boot(Box::new(machine)), &descriptors)?;
        Ok(vmm)
    }

    /// Starts the VMM and sends it a saved machine. The clock runs as in [`Vmm::boot`].
    pub fn restore(files: &Files<'_>, template: &Template) -> Result<Self> {
        let started = Instant::now();
        let (kvm, root_image) = (open_kvm()?, open(files.root_image)?);
        let (memory, state) = (open(&template.memory)?, open(&template.state)?);
        let (vmm, console) = Self::spawn(files.program, started)?;
        let restore = Restore {
            version: vmm_protocol::VERSION.into(),
            jail: JAIL,
            vcpus: 1,
            kvm: FdSlot(0),
            memory: FdSlot(1),
            state: FdSlot(2),
            root_image: FdSlot(3),
            console: FdSlot(4),
            growth_mib: 0,
        };
        let descriptors = [kvm.as_fd(), memory.as_fd(), state.as_fd(), root_image.as_fd(), console.as_fd()];
        vmm.send(Call::Restore(Box::new(restore)), &descriptors)?;
        Ok(vmm)
    }

    /// A VMM without a machine, and the writing end of its guest's console.
    fn spawn(program: &Path, started: Instant) -> Result<(Self, OwnedFd)> {
        let (console, console_end) = std::io::pipe()?;
        let (shim, vmm_end) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let mut command = Command::new(program);
        command.env_clear().stdin(Stdio::from(vmm_end)).stdout(Stdio::null());
        let child = command.spawn().with_context(|| format!("cannot run {}", program.display()))?;
        let vmm = Self { child, shim, console: Some(console), started, requests: AtomicU32::new(0) };
        Ok((vmm, console_end.into()))
    }

    /// Time since before it was started.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the guest's kernel and init print. There is one.
    pub fn console(&mut self) -> Result<PipeReader> {
        self.console.take().context("the console is read once")
    }

    /// The guest runs: the first request is answered, with what the VMM did until then.
    pub fn runs(&self) -> Result<Vec<Moment>> {
        match self.wait(|message| matches!(message, Message::Reply(reply) if reply.id == 1))? {
            Message::Reply(Reply { result: Ok(Answer::Running { moments }), .. }) => Ok(moments),
            other => bail!("the VMM says {other:?} instead of that its guest runs"),
        }
    }

    /// The guest's agent has knocked. A restored one does not.
    pub fn agent_ready(&self) -> Result<()> {
        self.wait(|message| matches!(message, Message::Event(Event::AgentReady))).map(drop)
    }

    /// A connection to the agent.
    pub fn connect(&self) -> Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let id = self.send(Call::Connect { port: AGENT_PORT, stream: FdSlot(0) }, &[theirs.as_fd()])?;
        self.answered(id)?;
        Ok(ours)
    }

    /// Saves a machine that was booted for it. The VMM ends then.
    pub fn save(mut self, template: &Template) -> Result<()> {
        let create = |path: &Path| {
            let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
            file.with_context(|| format!("cannot create {}", path.display()))
        };
        let (memory, state) = (create(&template.memory)?, create(&template.state)?);
        let call = Call::Snapshot { memory: FdSlot(0), state: FdSlot(1) };
        let id = self.send(call, &[memory.as_fd(), state.as_fd()])?;
        self.answered(id).context("saving the machine")?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks for a disk, without waiting for an answer.
    pub fn attach_disk(&self, image: &Path) -> Result<()> {
        let disk = File::options().read(true).write(true).open(image);
        let disk = disk.with_context(|| format!("cannot open {}", image.display()))?;
        let device = Device::Block { image: FdSlot(0), read_only: false, limit: RateLimit::default() };
        self.send(Call::Attach(device), &[disk.as_fd()]).map(drop)
    }

    /// Takes the first device away, without waiting for an answer.
    pub fn detach_disk(&self) -> Result<()> {
        self.send(Call::Detach { device: DeviceId(0) }, &[]).map(drop)
    }

    /// Sends a request, and returns its number.
    pub fn send(&self, call: Call, descriptors: &[BorrowedFd<'_>]) -> Result<u32> {
        let id = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let bytes = vmm_protocol::encode(&Request { id, call })?;
        let numbers: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        sendmsg::<()>(self.shim.as_raw_fd(), &[IoSlice::new(&bytes)], &rights, MsgFlags::empty(), None)?;
        Ok(id)
    }

    /// The VMM's next message. `None`: it has ended.
    pub fn receive(&self) -> Result<Option<Message>> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let length = recv(self.shim.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
        Ok(if length == 0 { None } else { Some(vmm_protocol::decode(&bytes[..length])?) })
    }

    /// Waits for the answer to a request, which must be that it is done.
    pub fn answered(&self, id: u32) -> Result<()> {
        self.wait(|message| matches!(message, Message::Reply(reply) if reply.id == id)).map(drop)
    }

    /// Reads messages until the wanted one comes. One that says that something failed is an error.
    fn wait(&self, wanted: impl Fn(&Message) -> bool) -> Result<Message> {
        loop {
            match self.receive()? {
                None => bail!("the VMM ended"),
                Some(Message::Reply(Reply { result: Err(error), .. })) => bail!("the VMM says: {error}"),
                Some(Message::Event(Event::Stopped(reason))) => bail!("the machine stopped: {reason:?}"),
                Some(message) if wanted(&message) => return Ok(message),
                Some(_) => {}
            }
        }
    }

    /// The shim is gone, for all that the VMM knows: it ends.
    pub fn hang_up(&self) -> Result<()> {
        Ok(shutdown(self.shim.as_raw_fd(), Shutdown::Both)?)
    }

    /// Waits for its end.
    pub fn ended(mut self) -> Result<ExitStatus> {
        Ok(self.child.wait()?)
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is as good.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn open_kvm() -> Result<File> {
    File::options().read(true).write(true).open("/dev/kvm").context("/dev/kvm")
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// The agent's first call, the one that the shim makes. Returns what the guest did until it answered.
pub fn configure(stream: UnixStream) -> Result<Moments> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        stream.set_nonblocking(true)?;
        let stream = tokio::net::UnixStream::from_std(stream)?;
        let agent = AgentClient::new(ttrpc::r#async::Client::new(stream.into()));
        let request = ConfigureRequest { hostname: "bench".into(), entropy: vec![7; 64], ..Default::default() };
        let answer = agent.configure(ttrpc::context::with_duration(ANSWER), &request).await;
        answer.context("the agent does not answer")?.moments.into_option().context("the agent tells no moments")
    })
}
