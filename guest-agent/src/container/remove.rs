//! Taking a container away, whole or half-made.

use super::Container;
use super::state::Removal;
use crate::agent::Agent;
use crate::error::Error;
use crate::id::ContainerId;
use crate::rootfs::{self, Rootfs};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a killed container may take to be gone.
const KILLED: Duration = Duration::from_secs(10);

impl Container {
    /// Refuses a container that runs; after this the name is free.
    pub async fn remove(&self, agent: &Agent) -> Result<(), Error> {
        let _whole = self.paused.lock().await;
        // Somebody else may have removed it while this call waited.
        agent.containers.get(&self.id)?;
        if self.init.removal()? == Removal::KillFirst {
            self.cgroup.kill()?;
            tokio::time::timeout(KILLED, self.init.end()).await.map_err(|_| Error::Deadline {
                operation: "killing",
                object: self.init.name.to_string(),
                seconds: KILLED.as_secs(),
            })?;
        }
        self.execs().clear();
        take_away(agent, &self.id, &self.bundle, &self.rootfs, &self.volumes).await;
        agent.containers.remove(&self.id);
        Ok(())
    }

    /// For the guest's shutdown: nothing runs and the root filesystem is clean afterwards.
    pub async fn shut_down(&self) {
        if let Err(error) = self.rootfs.unmount().await {
            tracing::warn!(container = %self.id, %error, "root filesystem stays mounted");
        }
    }
}

/// Every step is tried: what can't be removed is logged, since the guest is gone soon anyway.
pub(super) async fn take_away(agent: &Agent, id: &ContainerId, bundle: &Path, rootfs: &Rootfs, volumes: &[PathBuf]) {
    if let Err(error) = agent.crun.delete(id, bundle).await {
        tracing::warn!(container = %id, %error, "crun could not delete");
    }
    match rootfs.unmount().await {
        Ok(()) => {
            // Only after the unmount: this must never walk into the root filesystem.
            std::fs::remove_dir_all(bundle).ok();
        }
        Err(error) => tracing::warn!(container = %id, %error, "root filesystem stays mounted"),
    }
    rootfs::forget(id, volumes);
}
