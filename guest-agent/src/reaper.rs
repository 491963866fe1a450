//! Every child's end, collected in one place.
//!
//! The agent is the guest's subreaper: containers' first processes and added ones are orphaned to it by crun.
//! They have to be reaped at once, since a pid namespace's init can't end before the last process in it is
//! reaped. One loop does it for all pids; nothing else in the agent may call a `wait` function.
//!
//! A process can end before its pid is known here (crun tells it afterwards, in a file). While such a launch is
//! under way, statuses that nobody asked for yet are kept.

#![expect(unsafe_code, reason = "waitpid and kill of the C library: nix's can't express real-time signals")]

use crate::guest::identity;
use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;

/// Statuses kept for launches that have not told their pid yet. Orphans of a container that shares the
/// guest's pid namespace arrive here too, any number of them.
const MAX_UNCLAIMED: usize = 4096;

/// Reaped before others of the event loop have their turn.
const TURN: usize = 1024;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, or 128 + signal number.
    pub status: u32,
    /// Wall clock, nanoseconds since 1970.
    pub at_ns: u64,
}

impl Exit {
    /// An end that no process reported, with the present time.
    pub fn now(status: u32) -> Self {
        Self { status, at_ns: identity::clock() }
    }
}

/// A child that has not been forgotten. Its pid can't be used again before `reaped`.
#[derive(Clone, Debug)]
pub struct Child {
    pid: libc::pid_t,
    exit: watch::Receiver<Option<Exit>>,
    reaper: Arc<Reaper>,
}

/// While one exists, statuses of unknown pids are kept.
#[derive(Debug)]
pub struct Launch {
    reaper: Arc<Reaper>,
}

#[derive(Debug, Default)]
pub struct Reaper {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    watched: HashMap<libc::pid_t, watch::Sender<Option<Exit>>>,
    unclaimed: HashMap<libc::pid_t, Exit>,
    launches: usize,
}

impl Reaper {
    /// Collects whoever has ended, on every SIGCHLD, as long as the runtime lives.
    pub fn spawn() -> io::Result<Arc<Self>> {
        let reaper = Arc::new(Self::default());
        let mut signals = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::child())?;
        let looping = Arc::clone(&reaper);
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                while looping.reap() {
                    tokio::task::yield_now().await;
                }
            }
        });
        Ok(reaper)
    }

    /// Announces that a pid will be asked for whose process may have ended by then.
    pub fn launch(self: &Arc<Self>) -> Launch {
        self.table().launches += 1;
        Launch { reaper: Arc::clone(self) }
    }

    /// Whether there may be more: orphans may end as fast as they are reaped.
    fn reap(&self) -> bool {
        // Held while a pid is let go and marked, so that `Child::signal` never meets a pid that was used again.
        let mut table = self.table();
        for _ in 0..TURN {
            let Some((pid, status)) = wait_any() else { return false };
            table.ended(pid, Exit::now(status));
        }
        true
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no holder panics")
    }
}

impl Table {
    fn ended(&mut self, pid: libc::pid_t, exit: Exit) {
        if let Some(watched) = self.watched.remove(&pid) {
            watched.send_replace(Some(exit));
        } else if self.launches > 0 && self.unclaimed.len() < MAX_UNCLAIMED {
            self.unclaimed.insert(pid, exit);
        }
    }

    fn watch(&mut self, pid: libc::pid_t) -> watch::Receiver<Option<Exit>> {
        if let Some(watched) = self.watched.get(&pid) {
            return watched.subscribe();
        }
        if let Some(exit) = self.unclaimed.remove(&pid) {
            return watch::channel(Some(exit)).1;
        }
        let (sender, receiver) = watch::channel(None);
        self.watched.insert(pid, sender);
        receiver
    }
}

impl Launch {
    /// Runs a command of the agent's own.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let mut table = self.reaper.table();
        let pid = command.spawn()?.id();
        let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
        let exit = table.watch(pid);
        Ok(Child { pid, exit, reaper: Arc::clone(&self.reaper) })
    }

    /// Follows a process that was orphaned to the agent.
    pub fn adopt(&self, pid: libc::pid_t) -> Child {
        let exit = self.reaper.table().watch(pid);
        Child { pid, exit, reaper: Arc::clone(&self.reaper) }
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        let mut table = self.reaper.table();
        table.launches -= 1;
        if table.launches == 0 {
            // Nobody is going to ask: these were strangers, and their pids will be used again.
            table.unclaimed = HashMap::new();
        }
    }
}

impl Child {
    /// The pid in the guest's first namespace.
    pub fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    pub async fn wait(&mut self) -> Exit {
        let exit = self.exit.wait_for(Option::is_some).await.map(|exit| *exit);
        match exit.ok().flatten() {
            Some(exit) => exit,
            // The table keeps the sender until the child ends: this is the runtime going down.
            None => std::future::pending().await,
        }
    }

    pub fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Sends a signal; false if the child has ended already.
    pub fn signal(&self, signal: i32) -> io::Result<bool> {
        let _table = self.reaper.table();
        if self.has_ended() {
            return Ok(false);
        }
        kill(self.pid, signal)
    }
}

/// Sends a signal to a pid that the caller has just read from a cgroup; false if nobody has it.
pub fn kill(pid: libc::pid_t, signal: i32) -> io::Result<bool> {
    // SAFETY: kill takes two integers and touches no memory of this process.
    if unsafe { libc::kill(pid, signal) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        error => Err(error),
    }
}

/// One ended child's pid and status, if there is one.
fn wait_any() -> Option<(libc::pid_t, u32)> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the answer and outlives the call.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if pid > 0 {
            return Some((pid, exit_status(status)));
        }
        if pid == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return None;
        }
    }
}

/// What containerd wants to hear of a wait status.
pub fn exit_status(status: i32) -> u32 {
    let code = if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
    code.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(status: u32) -> Exit {
        Exit { status, at_ns: 7 }
    }

    #[test]
    fn codes_are_kept_and_signals_are_shifted() {
        assert_eq!(exit_status(3 << 8), 3);
        assert_eq!(exit_status(libc::SIGKILL), 137);
        assert_eq!(exit_status(libc::SIGSEGV | 0x80), 139);
        assert_eq!(exit_status(64), 192);
    }

    #[test]
    fn a_status_that_arrives_before_its_pid_is_known_is_not_lost() {
        let reaper = Arc::new(Reaper::default());
        let launch = reaper.launch();
        reaper.table().ended(42, exit(3));
        assert_eq!(*launch.adopt(42).exit.borrow(), Some(exit(3)));
    }

    #[test]
    fn strangers_are_forgotten_when_no_launch_is_under_way() {
        let reaper = Arc::new(Reaper::default());
        drop({
            let launch = reaper.launch();
            reaper.table().ended(42, exit(3));
            launch
        });
        reaper.table().ended(43, exit(3));
        assert!(reaper.table().unclaimed.is_empty());
        assert_eq!(*reaper.launch().adopt(42).exit.borrow(), None);
    }

    #[test]
    fn strangers_do_not_fill_the_memory() {
        let reaper = Arc::new(Reaper::default());
        let _launch = reaper.launch();
        for pid in 0..10_000 {
            reaper.table().ended(pid, exit(0));
        }
        assert_eq!(reaper.table().unclaimed.len(), MAX_UNCLAIMED);
    }

    #[test]
    fn a_watched_child_is_told_once_and_then_forgotten() {
        let reaper = Arc::new(Reaper::default());
        let child = reaper.launch().adopt(42);
        reaper.table().ended(42, exit(0));
        assert_eq!(*child.exit.borrow(), Some(exit(0)));
        assert!(reaper.table().watched.is_empty());
        assert!(!child.signal(libc::SIGKILL).unwrap(), "a reaped pid is never signalled");
    }
}
