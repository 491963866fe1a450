//! Memory that the guest asks for before it runs short.
//!
//! ```text
//!  containers reach the brake ─► kernel slows them down and notifies ─► MemoryWanted ─► the node gives memory
//!            ▲                                                                               │
//!            └──────────── brake set anew, or taken off with the last of it ◄── AddMemory ◄──┘
//! ```
//!
//! The brake is `memory.high` of the containers' parent cgroup: what is there without a reserve. Whoever exceeds it waits some
//! milliseconds and is never killed for it, so that a burst cannot outrun the memory that comes. Nothing is polled: a guest
//! that needs nothing does nothing. Kills remain a matter of the containers' own limits, and of the pod's size once all of it is there.

mod brake;

use crate::cgroup::{Notified, parse_flat};
use crate::spec::CGROUP_PARENT;
use brake::Memory;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

/// Between asking and getting. A node that says nothing gives nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// Until it is asked again, after that.
const PAUSE: Duration = Duration::from_secs(60);

/// For memory that was given to be in use.
const ARRIVAL: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(2);

/// What may be missing of memory that has arrived.
const SLACK: u64 = 1 << 20;

/// What the guest started with and what it may get, in bytes.
#[derive(Clone, Copy, Debug)]
struct Size {
    started: u64,
    growth: u64,
}

#[derive(Debug)]
pub struct Pressure {
    /// Of all containers.
    group: PathBuf,
    meminfo: PathBuf,
    /// Of a guest that may grow.
    size: OnceLock<Size>,
    /// No more comes. Held while the brake is set, which would stay where it was put after its release.
    released: Mutex<bool>,
    wanted: Notify,
    added: Notify,
}

impl Pressure {
    pub fn new(cgroups: &Path) -> Self {
        Self {
            group: cgroups.join(CGROUP_PARENT),
            meminfo: "/proc/meminfo".into(),
            size: OnceLock::new(),
            released: Mutex::new(false),
            wanted: Notify::new(),
            added: Notify::new(),
        }
    }

    /// The guest may grow by so much: sets the brake and watches it. Once.
    pub fn begin(self: &Arc<Self>, growth_mib: u32) {
        if !self.start(growth_mib) {
            return;
        }
        let pressure = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = pressure.watch().await {
                tracing::warn!(%error, "cannot watch the containers' memory: no more is asked for");
                pressure.release();
            }
        });
    }

    /// Whether there is anything to watch from now on.
    fn start(&self, growth_mib: u32) -> bool {
        let memory = self.memory().filter(|_| growth_mib > 0);
        let size = memory.map(|memory| Size { started: memory.total, growth: u64::from(growth_mib) << 20 });
        let begins = size.is_some_and(|size| self.size.set(size).is_ok());
        self.adjust();
        begins
    }

    /// What containers have without a limit of their own, once all of it is there; `None` if that is there from the start.
    pub fn most(&self) -> Option<u64> {
        self.size.get().map(|size| size.started + size.growth)
    }

    /// Returns when more is wanted.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Sets the brake to what there is now. Without growth to come, there is none.
    pub fn adjust(&self) {
        let released = self.released();
        if self.size.get().is_some()
            && !*released
            && let Some(brake) = self.brake()
        {
            self.set(&brake.to_string());
        }
    }

    /// Waits until memory that was given is there, `mib` in all, and lets containers use it as it comes.
    pub async fn added(&self, mib: u32) {
        let Some(size) = self.size.get() else { return };
        let given = (u64::from(mib) << 20).min(size.growth);
        let deadline = Instant::now() + ARRIVAL;
        let mut seen = 0;
        loop {
            let total = self.memory().map_or(0, |memory| memory.total);
            if total != seen {
                self.adjust();
                seen = total;
            }
            if total.saturating_add(SLACK) >= size.started + given {
                break;
            }
            if Instant::now() > deadline {
                tracing::warn!(mib, total, "not all of the new memory is in use");
                break;
            }
            sleep(POLL).await;
        }
        if given == size.growth {
            self.release();
        }
        self.added.notify_one();
    }

    async fn watch(&self) -> io::Result<()> {
        // Of this group alone: containers below may have brakes of their own.
        let mut file = File::open(self.group.join("memory.events.local"))?;
        let notified = Notified::new(file.try_clone()?)?;
        let mut seen = highs(&mut file)?;
        while !*self.released() {
            notified.next().await?;
            if highs(&mut file)? == seen {
                continue;
            }
            self.wanted.notify_one();
            let answered = timeout(PATIENCE, self.added.notified()).await.is_ok();
            if !answered {
                tracing::warn!("the node gives no memory now: containers have what there is");
                self.pause().await;
            }
            // Whoever is above the new brake is counted again.
            seen = highs(&mut file)?;
        }
        Ok(())
    }

    /// Takes the brake off for a while.
    async fn pause(&self) {
        {
            // Held: a brake that is set meanwhile would be taken off.
            let _released = self.released();
            self.set("max");
        }
        sleep(PAUSE).await;
        self.adjust();
    }

    /// Takes the brake off for good.
    pub fn release(&self) {
        let mut released = self.released();
        if self.size.get().is_some() && !std::mem::replace(&mut *released, true) {
            self.set("max");
            self.added.notify_one();
        }
    }

    fn released(&self) -> MutexGuard<'_, bool> {
        self.released.lock().expect("no holder panics")
    }

    fn brake(&self) -> Option<u64> {
        let used = std::fs::read_to_string(self.group.join("memory.current")).ok()?.trim().parse().ok()?;
        Some(self.memory()?.brake(used))
    }

    fn memory(&self) -> Option<Memory> {
        Memory::parse(&std::fs::read_to_string(&self.meminfo).ok()?)
    }

    fn set(&self, value: &str) {
        if let Err(error) = std::fs::write(self.group.join("memory.high"), value) {
            tracing::warn!(%error, "cannot set the containers' brake");
        }
    }
}

/// How often the brake was reached. Reading it arms the notification.
fn highs(file: &mut File) -> io::Result<Option<u64>> {
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    Ok(parse_flat(&text).remove("high"))
}

#[cfg(test)]
mod tests;
