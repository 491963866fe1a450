//! Our VMM without a shim: what is started, and when it is there.

use crate::{GUEST_MIB, INIT_LINE, console};
use agent_protocol::AGENT_PORT;
use agent_protocol::agent::ConfigureRequest;
use agent_protocol::agent_ttrpc::AgentClient;
use anyhow::{Context, Result, bail};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair};
use std::fs::File;
use std::io::{IoSlice, PipeReader};
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
            command_line: String::new(),
            kvm: FdSlot(0),
            kernel: FdSlot(1),
            root_image: FdSlot(2),
            console: FdSlot(3),
            debug_serial: false,
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
        let (ours, theirs) = UnixStream::pair()?;
        let id = self.send(Call::Connect { port: AGENT_PORT, stream: FdSlot(0) }, &[theirs.as_fd()])?;
        self.wait(|message| matches!(message, Message::Reply(reply) if reply.id == id))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(configure(ours))?;
        Ok(self.started.elapsed())
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

async fn configure(stream: UnixStream) -> Result<()> {
    stream.set_nonblocking(true)?;
    let stream = tokio::net::UnixStream::from_std(stream)?;
    let agent = AgentClient::new(ttrpc::r#async::Client::new(stream.into()));
    let request = ConfigureRequest { hostname: "bench".into(), entropy: vec![7; 64], ..Default::default() };
    agent.configure(ttrpc::context::with_duration(ANSWER), &request).await.context("the agent does not answer")?;
    Ok(())
}
