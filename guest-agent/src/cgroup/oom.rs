//! Out-of-memory kills of a container, told as they happen.
//!
//! The kernel notifies pollers of `memory.events`. A container that dies of its first kill is gone before the
//! notification is looked at, so the counter is read once more when the container's first process has ended.

use super::{Cgroup, Notified, parse_flat};
use crate::error::Error;
use crate::id::ContainerId;
use std::fs::File;
use std::io::{Read, Seek};
use std::sync::{Mutex, MutexGuard};
use tokio::sync::mpsc;

/// The container whose process was killed.
pub type OomEvent = ContainerId;

/// How often the kernel killed in one container, and how often that was told.
#[derive(Debug)]
pub struct OomCounter {
    container: ContainerId,
    seen: Mutex<Seen>,
    events: mpsc::Sender<OomEvent>,
}

#[derive(Debug)]
struct Seen {
    file: File,
    kills: u64,
}

impl OomCounter {
    /// None if the kernel doesn't account the container's memory.
    pub fn open(container: ContainerId, cgroup: &Cgroup, events: mpsc::Sender<OomEvent>) -> Option<Self> {
        let file = File::open(cgroup.path.join("memory.events")).ok()?;
        Some(Self { container, seen: Mutex::new(Seen { file, kills: 0 }), events })
    }

    /// Tells of kills since the last time.
    pub fn check(&self) {
        let mut seen = self.seen();
        let Some(kills) = seen.read_kills() else { return };
        if kills > seen.kills {
            seen.kills = kills;
            if self.events.try_send(self.container.clone()).is_err() {
                tracing::warn!(container = %self.container, "nobody listens to out-of-memory events");
            }
        }
    }

    /// Checks whenever the kernel says that something happened, for ever.
    pub async fn watch(&self) -> Result<(), Error> {
        let failed = || Error::system("watch the memory of", &self.container);
        let file = self.seen().file.try_clone().map_err(failed())?;
        let notified = Notified::new(file).map_err(failed())?;
        loop {
            notified.next().await.map_err(failed())?;
            self.check();
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("no holder panics")
    }
}

impl Seen {
    fn read_kills(&mut self) -> Option<u64> {
        let mut text = String::new();
        self.file.rewind().ok()?;
        self.file.read_to_string(&mut text).ok()?;
        parse_flat(&text).remove("oom_kill")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_new_kill_is_told_once() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("memory.events");
        std::fs::write(&file, "low 0\noom 0\noom_kill 0\n").unwrap();
        let (sender, mut receiver) = mpsc::channel(8);
        let cgroup = Cgroup::new(root.path().to_owned());
        let counter = OomCounter::open(ContainerId::parse("web").unwrap(), &cgroup, sender).unwrap();
        counter.check();
        assert!(receiver.try_recv().is_err());
        std::fs::write(&file, "low 0\noom 2\noom_kill 2\n").unwrap();
        counter.check();
        counter.check();
        assert_eq!(receiver.try_recv().unwrap().as_str(), "web");
        assert!(receiver.try_recv().is_err());
    }
}
