//! A container: its bundle, its root filesystem, its cgroup and its processes.
//!
//! `create` makes one, `start` runs its command, `exec` adds processes, `remove` takes it all away; each is a file
//! here. What a call may do in which state is decided in `state`, without effects.

mod create;
mod exec;
mod process;
mod remove;
mod start;
mod state;
mod table;
mod update;

pub use create::{CreateRequest, Pids, WantedDevice};
pub use process::Process;
pub use table::Table;

use crate::cgroup::Cgroup;
use crate::error::Error;
use crate::id::{ContainerId, ExecId, ProcessName};
use crate::rootfs::Rootfs;
use crate::spec::DeviceNode;
use exec::Exec;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::task::AbortHandle;

#[derive(Debug)]
pub struct Container {
    pub id: ContainerId,
    pub cgroup: Cgroup,
    /// The container's first process.
    pub init: Arc<Process>,
    pub bundle: PathBuf,
    oom_score: i64,
    /// Disks of the guest that it uses as devices.
    devices: Vec<DeviceNode>,
    rootfs: Rootfs,
    /// Volumes in the pod's file share that it mounts.
    volumes: Vec<PathBuf>,
    execs: Mutex<HashMap<ExecId, Arc<Exec>>>,
    /// Held by whatever changes the container as a whole; true while it is paused.
    pub paused: tokio::sync::Mutex<bool>,
    watchers: Mutex<Vec<AbortHandle>>,
}

impl Container {
    /// The process that a request names.
    pub fn process(&self, name: &ProcessName) -> Result<Arc<Process>, Error> {
        match &name.exec {
            None => Ok(Arc::clone(&self.init)),
            Some(exec) => Ok(Arc::clone(&self.exec(exec, name)?.process)),
        }
    }

    fn exec(&self, id: &ExecId, name: &ProcessName) -> Result<Arc<Exec>, Error> {
        self.execs().get(id).cloned().ok_or_else(|| Error::NoProcess(name.clone()))
    }

    /// Refuses what needs a container that runs.
    fn check_running(&self, operation: &'static str) -> Result<(), Error> {
        if self.init.is_gone() {
            let process = self.init.name.clone();
            return Err(Error::WrongState { operation, process, state: "has ended" });
        }
        Ok(())
    }

    pub async fn pause(&self) -> Result<(), Error> {
        let mut paused = self.paused.lock().await;
        self.check_running("pause")?;
        self.cgroup.freeze().await?;
        *paused = true;
        Ok(())
    }

    pub async fn resume(&self) -> Result<(), Error> {
        let mut paused = self.paused.lock().await;
        self.check_running("resume")?;
        self.cgroup.thaw()?;
        *paused = false;
        Ok(())
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<ExecId, Arc<Exec>>> {
        self.execs.lock().expect("no holder panics")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        for watcher in self.watchers.lock().expect("no holder panics").drain(..) {
            watcher.abort();
        }
    }
}
