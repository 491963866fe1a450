//! Everything that the calls work on.

use crate::cgroup::OomEvent;
use crate::container::Table;
use crate::crun::Crun;
use crate::id::ContainerId;
use crate::moments::Moments;
use crate::pci::PciBus;
use crate::pids::PodPids;
use crate::pressure::Pressure;
use crate::reaper::Reaper;
use crate::rootfs::{Layers, Share};
use crate::sockets::Sockets;
use crate::volumes::Volumes;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::{Mutex, mpsc};

/// Events that nobody has fetched yet. More are dropped: the shim only needs to know that there was one.
const MAX_EVENTS: usize = 256;

/// Where things are in the guest; tests have them elsewhere.
#[derive(Debug)]
pub struct Paths {
    pub crun: PathBuf,
    /// This program.
    pub agent: PathBuf,
    /// Bundles, sockets and crun's records: in memory, gone with the guest.
    pub run: PathBuf,
    pub cgroups: PathBuf,
    pub sysfs: PathBuf,
    serial: AtomicU64,
}

impl Paths {
    pub fn new(crun: &Path, run: &Path, cgroups: &Path, sysfs: &Path) -> Self {
        let serial = AtomicU64::new(0);
        let agent = "/proc/self/exe".into();
        Self { crun: crun.into(), agent, run: run.into(), cgroups: cgroups.into(), sysfs: sysfs.into(), serial }
    }

    pub fn of_guest() -> Self {
        let path = Path::new;
        Self::new(path("/usr/bin/crun"), path("/run/bulkhead"), path("/sys/fs/cgroup"), path("/sys"))
    }

    pub fn bundle(&self, id: &ContainerId) -> PathBuf {
        self.run.join("containers").join(id.as_str())
    }

    /// A short path that is not used yet.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.run.join(format!("{name}-{}", self.serial()))
    }

    pub fn serial(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }
}

#[derive(Debug)]
pub struct Agent {
    /// The node has given this guest its identity and randomness. Before, it may be the same as others.
    pub configured: AtomicBool,
    /// What it took until the agent listened.
    pub booted: Moments,
    pub paths: Paths,
    pub containers: Table,
    pub crun: Crun,
    pub pci: PciBus,
    pub share: Share,
    pub layers: Arc<Layers>,
    pub pod_pids: PodPids,
    pub volumes: Volumes,
    pub sockets: Arc<Sockets>,
    pub pressure: Arc<Pressure>,
    pub oom_events: mpsc::Sender<OomEvent>,
    pub next_oom_event: Mutex<mpsc::Receiver<OomEvent>>,
}

impl Agent {
    pub fn new(paths: Paths, reaper: Arc<Reaper>) -> io::Result<Self> {
        let pci = PciBus::new(&paths.sysfs);
        Self::with_share(paths, reaper, Share::new(pci))
    }

    pub fn with_share(paths: Paths, reaper: Arc<Reaper>, share: Share) -> io::Result<Self> {
        std::fs::create_dir_all(&paths.run)?;
        let (oom_events, next_oom_event) = mpsc::channel(MAX_EVENTS);
        Ok(Self {
            configured: AtomicBool::new(false),
            booted: Moments::default(),
            pod_pids: PodPids::new(paths.agent.clone(), Arc::clone(&reaper)),
            crun: Crun::new(paths.crun.clone(), paths.run.join("crun"), reaper),
            // One bus, since its clones take turns.
            pci: share.pci().clone(),
            layers: Arc::new(Layers::new(paths.run.join("l"), share.pci().clone())),
            share,
            volumes: Volumes::new(paths.run.join("v")),
            sockets: Arc::new(Sockets::new(paths.run.join("v"))),
            pressure: Arc::new(Pressure::new(&paths.cgroups)),
            containers: Table::default(),
            oom_events,
            next_oom_event: Mutex::new(next_oom_event),
            paths,
        })
    }
}
