//! The VMM process and what the shim asks of it.

mod client;
mod failures;
mod socket;

use super::SandboxError;
use super::agent::printable;
use super::cgroup::Cgroup;
use super::host::Host;
use super::process::{Process, Program, packet_pair};
use super::spec::PodName;
use crate::trace;
use client::{Client, Said};
use failures::Names;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::watch;
use vmm_protocol::{Answer, Call, Device, DeviceId, FdSlot, Machine, PciAddress, Restore, StopReason};

// The guest's agent knocks where the VMM listens, though neither links the other's protocol.
const _: () = assert!(agent_protocol::READY_PORT == vmm_protocol::READY_PORT);

/// For what the VMM does by itself.
const DEFAULT: Duration = Duration::from_secs(10);

/// From the end of the socket to the end of the process.
const SOCKET_CLOSES: Duration = Duration::from_secs(1);

/// From the moment when the process must end. A thread that waits for a disk cannot be killed before the disk answers.
const ENDS: Duration = Duration::from_secs(5);

/// A VMM process. Dropping the handle does not end it.
#[derive(Clone, Debug)]
pub(super) struct Vmm {
    client: Client,
    names: Names,
    killer: Killer,
    stopped: watch::Receiver<Option<String>>,
    started: u64,
}

impl Vmm {
    /// Starts the process; it waits for [`Self::boot`].
    pub fn spawn(host: &Host, cgroup: &Cgroup, oom_score: u16, pod: PodName) -> Result<Self, SandboxError> {
        let spawned = trace::span(trace::SHIM, "spawn");
        let (ours, theirs) = packet_pair().map_err(SandboxError::host("create", "the VMM's control socket"))?;
        let program = Program { name: "VMM", path: &host.vmm(), arguments: &[], oom_score };
        let process = Process::spawn(&program, theirs, cgroup)?;
        let client = Client::new(ours).map_err(SandboxError::host("use", "the VMM's control socket"))?;
        let killer = Killer { process, why: Arc::new(watch::Sender::new(None)) };
        let (sender, stopped) = watch::channel(None);
        tokio::spawn(supervise(killer.clone(), client.said(), sender));
        let names = Names::default();
        tokio::spawn(failures::log(pod, names.clone(), client.said()));
        Ok(Self { client, names, killer, stopped, started: spawned.start() })
    }

    /// When its start began, by the node's monotonic clock; 0 without a trace.
    pub fn started(&self) -> u64 {
        self.started
    }

    /// Answered when the guest's vCPUs run.
    pub async fn boot(
        &self,
        machine: Machine,
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(), SandboxError> {
        self.make("boot", Call::Boot(Box::new(machine)), descriptors, limit).await
    }

    /// The same for a machine that is made from a template, whose agent listens then.
    pub async fn restore(
        &self,
        restore: Restore,
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(), SandboxError> {
        self.make("restore a template", Call::Restore(Box::new(restore)), descriptors, limit).await
    }

    async fn make(
        &self,
        operation: &'static str,
        call: Call,
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(), SandboxError> {
        let _making = trace::span(trace::SHIM, operation);
        let answer = self.call(operation, call, descriptors, limit).await?;
        if let (Answer::Running { moments }, true) = (answer, trace::is_on()) {
            trace::vmm(&moments, self.started..trace::now());
        }
        Ok(())
    }

    /// Saves the machine into memory and state file, and ends it.
    pub async fn snapshot(&self, files: [&std::fs::File; 2], limit: Duration) -> Result<(), SandboxError> {
        let call = Call::Snapshot { memory: FdSlot(0), state: FdSlot(1) };
        self.call("save the machine", call, &files.map(AsFd::as_fd), limit).await.map(drop)
    }

    /// Waits until the agent's services listen.
    pub async fn agent_ready(&self) -> Result<(), SandboxError> {
        let mut said = self.client.said();
        let ready = said.wait_for(|said| said.agent_ready || said.closed.is_some()).await;
        if ready.is_ok_and(|said| said.agent_ready) { Ok(()) } else { Err(self.gone().await) }
    }

    /// Plugs a device whose one descriptor is slot 0. `name` tells the operator which one.
    pub async fn attach(
        &self,
        name: &str,
        device: Device,
        descriptor: BorrowedFd<'_>,
    ) -> Result<(DeviceId, PciAddress), SandboxError> {
        self.attach_all(name, device, &[descriptor]).await
    }

    /// The same for a device of several descriptors, which it names by their positions.
    pub async fn attach_all(
        &self,
        name: &str,
        device: Device,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(DeviceId, PciAddress), SandboxError> {
        let operation = format!("attach {name}");
        match self.call(&operation, Call::Attach(device), descriptors, DEFAULT).await? {
            Answer::Attached { device, address } => {
                self.names.insert(device, name);
                Ok((device, address))
            }
            _ => Err(SandboxError::Refused { operation, reason: "its answer names no device".to_owned() }),
        }
    }

    /// A guest that looks for devices finds this one no more.
    pub async fn withdraw(&self, device: DeviceId) -> Result<(), SandboxError> {
        self.call("withdraw a device", Call::Withdraw { device }, &[], DEFAULT).await.map(drop)
    }

    pub async fn detach(&self, device: DeviceId) -> Result<(), SandboxError> {
        self.names.remove(device);
        self.call("detach a device", Call::Detach { device }, &[], DEFAULT).await.map(drop)
    }

    /// Lets the guest have this much memory besides what it started with. Answers which device has it.
    pub async fn grow(&self, mib: u32) -> Result<PciAddress, SandboxError> {
        const OPERATION: &str = "give the guest memory";
        match self.call(OPERATION, Call::Memory { mib }, &[], DEFAULT).await? {
            Answer::Memory { address } => Ok(address),
            _ => Err(SandboxError::Refused {
                operation: OPERATION.to_owned(),
                reason: "its answer names no device".to_owned(),
            }),
        }
    }

    /// Connects to a vsock port of the guest.
    pub async fn connect(&self, port: u32, limit: Duration) -> Result<UnixStream, SandboxError> {
        let failed = || SandboxError::host("create", "a stream to the guest");
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed())?;
        ours.set_nonblocking(true).map_err(failed())?;
        let call = Call::Connect { port, stream: FdSlot(0) };
        self.call("connect to the guest", call, &[theirs.as_fd()], limit).await?;
        UnixStream::from_std(ours).map_err(failed())
    }

    pub fn pid(&self) -> u32 {
        self.killer.process.pid()
    }

    pub fn process(&self) -> &Process {
        &self.killer.process
    }

    pub fn killer(&self) -> &Killer {
        &self.killer
    }

    /// Holds the reason once the process has been reaped.
    pub fn stopped(&self) -> watch::Receiver<Option<String>> {
        self.stopped.clone()
    }

    async fn call(
        &self,
        operation: &str,
        call: Call,
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<Answer, SandboxError> {
        match self.client.call(operation, call, descriptors, limit).await {
            Err(SandboxError::Gone(_)) => Err(self.gone().await),
            result => result,
        }
    }

    /// The process is about to be reaped: with its end comes the reason.
    async fn gone(&self) -> SandboxError {
        let mut stopped = self.stopped.clone();
        let reason = tokio::time::timeout(DEFAULT, stopped.wait_for(Option::is_some)).await;
        let reason = reason.ok().and_then(Result::ok).and_then(|reason| reason.clone());
        SandboxError::Gone(reason.unwrap_or_else(|| "the VMM closed its control socket".to_owned()))
    }
}

/// Ends a VMM.
#[derive(Clone, Debug)]
pub(super) struct Killer {
    process: Process,
    why: Arc<watch::Sender<Option<String>>>,
}

impl Killer {
    /// SIGKILL. The first reason is the one that is told.
    pub fn kill(&self, reason: &str) {
        self.why.send_if_modified(|why| {
            let first = why.is_none();
            why.get_or_insert_with(|| reason.to_owned());
            first
        });
        self.process.kill();
    }
}

/// Sees the process to its end and puts the reason together. A process that the node's kernel does not let end counts as
/// ended: its vCPUs run no more.
async fn supervise(killer: Killer, said: watch::Receiver<Said>, stopped: watch::Sender<Option<String>>) {
    let mut ended = killer.process.ended();
    let how = tokio::select! {
        () = closes(&killer, said.clone()) => ended.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone()),
        () = must_end(&killer, said.clone()) => {
            let pid = killer.process.pid();
            tracing::error!(pid, "the VMM does not end: the node's kernel holds a thread of it, which a disk that hangs does");
            Some("the VMM does not end, since a disk of the node hangs".to_owned())
        }
    };
    let (asked, said) = (killer.why.borrow().clone(), said.borrow().clone());
    // Calls that fail of it tell it too, but there may be none.
    let has_failed = matches!(said.stopped, Some(StopReason::Failed(_)));
    let reason = reason(asked, said, how);
    if has_failed {
        tracing::error!(reason, "the microVM has failed");
    }
    stopped.send_replace(Some(reason));
}

/// Returns when the process has ended and has said all that it will.
async fn closes(killer: &Killer, mut said: watch::Receiver<Said>) {
    let mut ended = killer.process.ended();
    // Its last words come before the end of its socket, and that comes with the end of the process, or before.
    let _ = said.wait_for(|said| said.closed.is_some()).await;
    if tokio::time::timeout(SOCKET_CLOSES, ended.wait_for(Option::is_some)).await.is_err() {
        // Nothing can be asked of a VMM that has closed its socket.
        killer.process.kill();
    }
    let _ = ended.wait_for(Option::is_some).await;
}

/// Returns when the process should have ended for long.
async fn must_end(killer: &Killer, mut said: watch::Receiver<Said>) {
    let mut why = killer.why.subscribe();
    tokio::select! {
        _ = why.wait_for(Option::is_some) => {}
        _ = said.wait_for(|said| said.stopped.is_some() || said.closed.is_some()) => {}
    }
    tokio::time::sleep(ENDS).await;
}

fn reason(asked: Option<String>, said: Said, ended: Option<String>) -> String {
    let broken = said.closed.flatten().map(|wrong| format!("the VMM broke the protocol: {wrong}"));
    let told = said.stopped.map(|stopped| match stopped {
        StopReason::GuestStopped => "the guest stopped".to_owned(),
        StopReason::Failed(text) => format!("the VMM failed: {}", printable(&text)),
    });
    asked.or(broken).or(told).or(ended).unwrap_or_else(|| "the VMM ended".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cause_is_the_reason() {
        let said =
            |stopped, wrong: Option<&str>| Said { stopped, closed: Some(wrong.map(str::to_owned)), ..Said::default() };
        let ended = || Some("the VMM was killed by signal 9".to_owned());
        assert_eq!(reason(Some("asked".into()), said(None, None), ended()), "asked");
        assert_eq!(reason(None, said(Some(StopReason::GuestStopped), None), ended()), "the guest stopped");
        assert_eq!(reason(None, said(None, Some("junk")), ended()), "the VMM broke the protocol: junk");
        assert_eq!(reason(None, said(None, None), ended()), "the VMM was killed by signal 9");
    }
}
