//! The pod's own pid namespace, for containers that are to see each other's processes.
//!
//! A pid namespace lives as long as its first process. A container's would take the others with it, so a process of ours
//! is the first: this program again, which reaps and does nothing else. It is made when the first container asks.

#![expect(unsafe_code, reason = "fork; and SIGCHLD is ignored, which has no safe wrapper")]

use crate::error::Error;
use crate::reaper::{Child, Reaper};
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, fork, pause, pipe2};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// The argument that makes this program a namespace's first process.
pub const HOLD: &str = "hold-pid-namespace";

/// What `ps` shows in the pod.
const NAME: &str = "pod";

/// For a process to be made.
const DEADLINE: Duration = Duration::from_secs(10);

/// More digits than a pid has.
const MAX_ANSWER: usize = 16;

/// Makes the pod's pid namespace once, and again should its first process have died.
#[derive(Debug)]
pub struct PodPids {
    program: PathBuf,
    reaper: Arc<Reaper>,
    first: Mutex<Option<Child>>,
}

impl PodPids {
    /// `program` is this one.
    pub fn new(program: PathBuf, reaper: Arc<Reaper>) -> Self {
        Self { program, reaper, first: Mutex::new(None) }
    }

    /// The pid of the namespace's first process, in the guest's own namespace.
    pub async fn first_process(&self) -> Result<u32, Error> {
        let mut first = self.first.lock().await;
        if let Some(child) = first.as_ref().filter(|child| !child.has_ended()) {
            return Ok(child.pid());
        }
        let late = |_| Error::Deadline {
            operation: "making",
            object: "the pod's pid namespace".to_owned(),
            seconds: DEADLINE.as_secs(),
        };
        let child = timeout(DEADLINE, make(&self.program, &self.reaper)).await.map_err(late)??;
        let pid = child.pid();
        *first = Some(child);
        Ok(pid)
    }
}

async fn make(program: &Path, reaper: &Arc<Reaper>) -> Result<Child, Error> {
    try_make(program, reaper).await.map_err(Error::system("make", "the pod's pid namespace"))
}

async fn try_make(program: &Path, reaper: &Arc<Reaper>) -> io::Result<Child> {
    let (answer, answer_end) = pipe2(OFlag::O_CLOEXEC)?;
    let launch = reaper.launch();
    let mut command = Command::new(program);
    command.arg0(NAME).arg(HOLD).env_clear().current_dir("/");
    command.stdin(Stdio::null()).stdout(answer_end);
    let mut maker = launch.spawn(&mut command)?;
    drop(command);
    let exit = maker.wait().await;
    // The answer is there as a whole, or nothing is: the maker has ended, so this does not wait.
    let mut text = [0; MAX_ANSWER];
    let length = if exit.status == 0 { File::from(answer).read(&mut text)? } else { 0 };
    match String::from_utf8_lossy(&text[..length]).parse() {
        Ok(pid) if pid > 1 => Ok(launch.adopt(pid)),
        _ => Err(io::Error::other(format!("its maker ended with status {}", exit.status))),
    }
}

/// What this program does when its argument is [`HOLD`]: leaves the namespace's first process behind and tells its pid.
pub fn hold() -> ExitCode {
    match leave_behind() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bulkhead-agent: cannot make a pid namespace: {error}");
            ExitCode::FAILURE
        }
    }
}

fn leave_behind() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWPID)?;
    // The kernel reaps for a process that ignores its children's ends. Here already, so that none comes too early.
    // SAFETY: no handler is installed.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
    // SAFETY: this program has only this thread.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            let mut answer = io::stdout();
            write!(answer, "{child}")?;
            answer.flush()
        }
        ForkResult::Child => hold_on(),
    }
}

fn hold_on() -> ! {
    // It has the agent's privileges, and containers beside it can name it: without this they could trace it.
    nix::sys::prctl::set_dumpable(false).ok();
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        for result in [nix::unistd::dup2_stdin(&null), nix::unistd::dup2_stdout(&null), nix::unistd::dup2_stderr(&null)]
        {
            result.ok();
        }
    }
    loop {
        pause();
    }
}
