//! Volumes that the guest has itself, instead of sharing them with the node: a pod that mounts nothing else of the node
//! needs no file server. Configuration of the pod is copied into the guest's memory.
//!
//! ```text
//! look       what a mount is, by the real name of its source; classify has the rules
//! empty_dir  directories for containers to write to, which are volumes of the guest instead
//! read       the files of a source, of one version, bounded
//! push       the agent's calls that give a volume its content
//! watch      notices that kubelet replaced a version
//! returned   termination logs, which come back when their container ends
//! ```
//! A volume is one directory or file of the node, in whichever containers it is mounted. A directory stays until the pod ends. A file goes with
//! the last of its containers: what kubelet writes in its place is another file.

mod classify;
mod empty_dir;
mod follow;
mod look;
mod placed;
mod push;
mod read;
mod returned;
mod watch;

pub(super) use empty_dir::{EmptyDir, Medium, Owner};
pub(super) use look::Looked;

use super::agent::Agent;
use super::attach::blocking;
use super::file_id::FileId;
use super::guest_spec::HostMount;
use super::policy::Resolved;
use super::{SandboxError, SpecError};
use crate::identifier::Identifier;
use agent_protocol::{VOLUME_FILE, VOLUMES};
use classify::VolumePlan;
use placed::{Placed, Source};
use read::ReadError;
use returned::Returned;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch as changes};
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// Most bytes of a pod's volumes together.
const MAX_POD: u64 = 32 << 20;

/// For one volume.
const READING: Duration = Duration::from_secs(30);

/// From the end of a container until it is told at the latest: the guest may not answer.
const TAKING_BACK: Duration = Duration::from_secs(2);

/// The part of the microVM's memory that they may take. A volume is there twice while it is replaced.
const PART_OF_MEMORY: u64 = 4;

/// The volumes of one pod.
#[derive(Debug)]
pub(super) struct Volumes {
    pod: Arc<Pod>,
    /// What comes back, by container.
    returned: Mutex<HashMap<Identifier, Vec<Returned>>>,
    following: OnceLock<AbortHandle>,
}

/// What the task that follows updates shares with whoever adds volumes.
#[derive(Debug)]
struct Pod {
    agent: Agent,
    stopped: changes::Receiver<Option<String>>,
    limit: u64,
    /// Held during calls of the agent, each of which has a deadline. Neither a kill nor a deletion needs it.
    state: tokio::sync::Mutex<State>,
    added: Notify,
}

#[derive(Debug, Default)]
struct State {
    volumes: HashMap<FileId, Placed>,
    last_id: u64,
}

impl State {
    fn next_id(&mut self) -> String {
        self.last_id += 1;
        format!("v{}", self.last_id)
    }

    fn bytes(&self) -> u64 {
        self.volumes.values().map(Placed::bytes).sum()
    }
}

impl Volumes {
    pub fn new(agent: Agent, stopped: changes::Receiver<Option<String>>, memory_mib: u32) -> Self {
        let limit = MAX_POD.min((u64::from(memory_mib) << 20) / PART_OF_MEMORY);
        let pod = Pod { agent, stopped, limit, state: tokio::sync::Mutex::default(), added: Notify::new() };
        Self { pod: Arc::new(pod), returned: Mutex::default(), following: OnceLock::new() }
    }

    /// Brings the source of a mount into the guest, if it is one of those that are copied. Returns where the guest has it.
    pub async fn place(
        &self,
        container: &Identifier,
        mount: &HostMount,
        found: &Resolved,
        looked: Looked,
    ) -> Result<Option<String>, SandboxError> {
        let Looked { plan, key, .. } = looked;
        let source = |kind| Source { path: found.path.clone(), key, kind };
        let placed = match plan {
            VolumePlan::Shared | VolumePlan::EmptyDir(_) => return Ok(None),
            VolumePlan::Pushed => self.pod.place(container, source(placed::Kind::Directory)).await,
            VolumePlan::File => self.pod.place(container, source(placed::Kind::File)).await,
            VolumePlan::Returned => self.place_returned(container, source(placed::Kind::File), found).await,
        };
        let placed = placed.map_err(|error| error.about(mount))?;
        if placed.is_some() && plan == VolumePlan::Pushed {
            self.follow();
        }
        Ok(placed.map(|id| match plan {
            VolumePlan::Pushed | VolumePlan::Shared | VolumePlan::EmptyDir(_) => format!("{VOLUMES}/{id}"),
            VolumePlan::File | VolumePlan::Returned => format!("{VOLUMES}/{id}/{VOLUME_FILE}"),
        }))
    }

    /// For another volume of the pod.
    pub async fn next_id(&self) -> String {
        self.pod.state.lock().await.next_id()
    }

    /// From the first volume on that kubelet may update.
    fn follow(&self) {
        self.following.get_or_init(|| tokio::spawn(follow::follow(self.pod.clone())).abort_handle());
        self.pod.added.notify_one();
    }

    async fn place_returned(
        &self,
        container: &Identifier,
        source: Source,
        found: &Resolved,
    ) -> Result<Option<String>, PlaceError> {
        let file = returned::open(found).map_err(|error| PlaceError::Read(error.into()))?;
        let id = self.pod.state.lock().await.next_id();
        let returned = Returned::new(id.clone(), file);
        // Before it is made: whoever detaches the container finds it.
        self.returned().entry(container.clone()).or_default().push(returned);
        returned::place(&self.pod.agent, &id, source).await?;
        Ok(Some(id))
    }

    /// Writes back what a container that has ended left in its files. Bounded; an error is logged.
    pub async fn take_back(&self, container: &Identifier) {
        let returned = self.returned().get(container).cloned().unwrap_or_default();
        let take_back = async {
            for file in returned {
                file.take_back(&self.pod.agent, container).await;
            }
        };
        if timeout(TAKING_BACK, take_back).await.is_err() {
            tracing::warn!(%container, "the termination log did not come back in {TAKING_BACK:?}");
        }
    }

    /// Forgets what was a container's alone. Waits for nobody.
    pub fn detach(&self, container: &Identifier) {
        let returned = self.returned().remove(container).unwrap_or_default();
        if self.pod.stopped.borrow().is_some() {
            return;
        }
        let (pod, container) = (self.pod.clone(), container.clone());
        tokio::spawn(async move {
            pod.release_files(&container).await;
            for file in returned {
                file.release(&pod.agent).await;
            }
        });
    }

    /// No update is followed any more.
    pub fn end(&self) {
        if let Some(following) = self.following.get() {
            following.abort();
        }
    }

    fn returned(&self) -> std::sync::MutexGuard<'_, HashMap<Identifier, Vec<Returned>>> {
        self.returned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a pod's volumes may take, and what the others have.
#[derive(Clone, Copy, Debug)]
struct Room {
    limit: u64,
    others: u64,
}

impl Room {
    fn check(self, bytes: u64) -> Result<(), PlaceError> {
        if bytes <= self.limit.saturating_sub(self.others) { Ok(()) } else { Err(PlaceError::PodTooLarge(self.limit)) }
    }
}

impl Pod {
    fn room(&self, others: u64) -> Room {
        Room { limit: self.limit, others }
    }

    /// The volume's content is the newest when this returns. `None`: it has not the layout of one that can be followed.
    async fn place(&self, user: &Identifier, source: Source) -> Result<Option<String>, PlaceError> {
        let mut state = self.state.lock().await;
        let others = state.bytes();
        if let Some(volume) = state.volumes.get_mut(&source.key) {
            let room = self.room(others - volume.bytes());
            // Its other name may be gone: kubelet binds a part of a volume for each container.
            volume.source = source;
            volume.refresh(&self.agent, room).await?;
            volume.users.insert(user.clone());
            return Ok(Some(volume.id.clone()));
        }
        let Some(tree) = source.read().await? else { return Ok(None) };
        let id = state.next_id();
        let key = source.key;
        let room = self.room(others);
        let mut volume = Placed::new(&self.agent, id.clone(), source, tree, room).await?;
        volume.users.insert(user.clone());
        state.volumes.insert(key, volume);
        Ok(Some(id))
    }

    /// Forgets files that only `user` has mounted.
    async fn release_files(&self, user: &Identifier) {
        let mut state = self.state.lock().await;
        let mut unused = Vec::new();
        state.volumes.retain(|_, volume| {
            volume.users.remove(user);
            let stays = volume.source.kind == placed::Kind::Directory || !volume.users.is_empty();
            if !stays {
                unused.push(volume.id.clone());
            }
            stays
        });
        for id in unused {
            self.agent.forget_volume(&id).await;
        }
    }
}

/// Why a source is not in the guest.
#[derive(Debug, thiserror::Error)]
enum PlaceError {
    #[error(transparent)]
    Read(ReadError),
    #[error("the pod's configuration is larger than {} MiB, which is the most that is copied into its microVM", .0 >> 20)]
    PodTooLarge(u64),
    #[error(transparent)]
    Agent(#[from] super::AgentError),
}

impl From<ReadError> for PlaceError {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl PlaceError {
    fn about(self, mount: &HostMount) -> SandboxError {
        match self {
            Self::Agent(error) => error.into(),
            Self::Read(ReadError::Io(error)) => SandboxError::host("read", &mount.source.display())(error),
            error => {
                let destination = mount.destination.display().to_string();
                SpecError::Mount { destination, reason: error.to_string() }.into()
            }
        }
    }
}

/// Reads of the node's files block, and take as long as their file system does.
async fn reading<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
) -> Result<T, ReadError> {
    match timeout(READING, blocking(move || Ok(work()))).await {
        Ok(result) => result.map_err(|error| ReadError::Io(io::Error::other(error.to_string())))?,
        Err(_) => Err(ReadError::Io(io::ErrorKind::TimedOut.into())),
    }
}

#[cfg(test)]
mod tests;
