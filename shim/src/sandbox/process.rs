//! A process of the sandbox on the node: the VMM or the file server.
//!
//! It gets a control socket as fd 0, a log pipe as fd 2, an empty environment, and nothing else of the shim's. It is born in
//! the sandbox's cgroup, so that nothing it uses is charged elsewhere.

#[expect(unsafe_code, reason = "a child that is born in a cgroup, and its descriptors until it is a program")]
mod spawn;

use super::SandboxError;
use super::cgroup::Cgroup;
use super::lines::{self, Forwarding, Source};
use nix::fcntl::OFlag;
use nix::sys::wait::WaitStatus;
use spawn::Child;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::{Notify, watch};

/// A running process, reaped by a task of its own. Dropping the handle does not end it.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pid: u32,
    /// `oom_score_adj`, open: whatever gets the pid later, it is this process's.
    score: Arc<File>,
    kill: Arc<Notify>,
    ended: watch::Receiver<Option<String>>,
}

/// What to run.
#[derive(Debug)]
pub(super) struct Program<'a> {
    /// As it is called in logs and errors.
    pub name: &'static str,
    pub path: &'a Path,
    pub arguments: &'a [&'a OsStr],
    /// How early it goes when the node runs out of memory, from 0 to 1000. The shim's own score, which is to keep the shim
    /// alive, would be inherited.
    pub oom_score: u16,
}

impl Process {
    pub fn spawn(program: &Program<'_>, control: OwnedFd, cgroup: &Cgroup) -> Result<Self, SandboxError> {
        let failed = |error: io::Error| SandboxError::host("start", &program.path.display())(error);
        let directory = cgroup.open()?;
        let nothing = File::options().write(true).open("/dev/null").map_err(SandboxError::host("open", "/dev/null"))?;
        let (log, log_writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| failed(error.into()))?;
        let standard = [control.as_fd(), nothing.as_fd(), log_writer.as_fd()];
        let child = spawn::spawn(program.path, program.arguments, standard, &directory).map_err(failed)?;
        // The log would never end with the parent's end of it.
        drop((control, log_writer));
        let pid = child.pid();
        // Until it is reaped, which is not before the end of this function, the pid is its own.
        let score = format!("/proc/{pid}/oom_score_adj");
        let score = File::options().write(true).open(&score).map_err(SandboxError::host("open", &score))?;
        write_score(&score, program.oom_score).map_err(SandboxError::host("write", "oom_score_adj"))?;
        let log = lines::forward(log, Source::Program(program.name))?;
        let kill = Arc::new(Notify::new());
        let (sender, ended) = watch::channel(None);
        tokio::spawn(reap(program.name, child, Arc::clone(&kill), log, sender));
        Ok(Self { pid, score: Arc::new(score), kill, ended })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How early it goes when the node runs out of memory, from now on. A process that has ended is fine.
    pub fn set_oom_score(&self, score: u16) -> io::Result<()> {
        match write_score(&self.score, score) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            result => result,
        }
    }

    /// Bytes of files and devices that it has made dirty so far (`write_bytes` in the kernel's `filesystems/proc`). `None` when it has ended.
    pub fn written(&self) -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/io", self.pid)).ok()?;
        text.lines().find_map(|line| line.strip_prefix("write_bytes: "))?.parse().ok()
    }

    /// SIGKILL, once. Signals nobody when the process has been reaped.
    pub fn kill(&self) {
        self.kill.notify_one();
    }

    /// Holds how the process ended.
    pub fn ended(&self) -> watch::Receiver<Option<String>> {
        self.ended.clone()
    }
}

fn write_score(mut file: &File, score: u16) -> io::Result<()> {
    file.write_all(score.to_string().as_bytes())
}

async fn reap(
    name: &'static str,
    mut child: Child,
    kill: Arc<Notify>,
    log: Forwarding,
    ended: watch::Sender<Option<String>>,
) {
    let status = tokio::select! {
        status = child.wait() => status,
        () = kill.notified() => {
            child.kill();
            child.wait().await
        }
    };
    let mut text = match status {
        Ok(status) => describe(name, status),
        Err(error) => format!("the {name} could not be waited for: {error}"),
    };
    if let Some(error) = log.last_error().await {
        text = format!("{text}: {error}");
    }
    ended.send_replace(Some(text));
}

fn describe(name: &str, status: WaitStatus) -> String {
    match status {
        WaitStatus::Exited(_, code) => format!("the {name} ended with exit code {code}"),
        WaitStatus::Signaled(_, signal, _) => format!("the {name} was killed by signal {}", signal as i32),
        other => format!("the {name} ended: {other:?}"),
    }
}

/// A close-on-exec `SOCK_SEQPACKET` pair.
pub(super) fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

#[cfg(test)]
mod tests;
