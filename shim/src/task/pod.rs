//! One pod: its microVM and its containers. Everything that is answered without the guest is answered from here.
//!
//! The lock is held for look-ups and changes, never across an await: no guest and no client can keep it.

use super::container::{Container, Process};
use super::guest_events;
use super::vm::{Boot, MicroVm};
use crate::error::TaskError;
use crate::events::Events;
use crate::identifier::Identifier;
use crate::sandbox::{SandboxError, SandboxSpec, SharedPod};
use bulkhead_config::Config;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Most containers in a pod, and most processes added to one of them: far above use, below harm.
const MAX_CONTAINERS: usize = 256;
pub const MAX_EXECS: usize = 1024;

#[derive(Debug)]
pub struct Pod {
    pub namespace: Identifier,
    /// Also the id of the container that owns the microVM.
    pub id: Identifier,
    pub events: Events,
    boot: Box<dyn Boot>,
    state: Mutex<State>,
    over: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    vm: Option<Arc<dyn MicroVm>>,
    /// `None`: being created. The name is taken, nothing else is known.
    containers: HashMap<Identifier, Option<Arc<Container>>>,
    /// Being created, and deleted meanwhile.
    unwanted: HashSet<Identifier>,
    /// A pod sandbox that is no container: its end is asked for by itself.
    is_sandbox: bool,
    /// containerd asked for the end while containers were left.
    shutdown_wanted: bool,
    /// The container that owns the microVM was there and is not any more.
    owner_gone: bool,
}

impl State {
    /// A creation that hangs must not keep the shim of a pod that is gone: nothing can come of it.
    fn may_end(&self) -> bool {
        if self.is_sandbox {
            return false;
        }
        self.containers.is_empty() || (self.owner_gone && self.containers.values().all(Option::is_none))
    }

    /// The microVM goes as late as the container that may stay longest: with it, all go. Scores keep the order of QoS
    /// classes among pods, though none is below 0.
    fn apply_oom_score(&self) {
        let containers = self.containers.values().flatten().filter(|container| !container.is_sandbox);
        if let (Some(vm), Some(score)) = (&self.vm, containers.map(|container| container.oom_score).min()) {
            vm.set_oom_score(score);
        }
    }
}

impl Pod {
    pub fn new(namespace: Identifier, id: Identifier, events: Events, boot: Box<dyn Boot>) -> Self {
        Self { namespace, id, events, boot, state: Mutex::default(), over: watch::Sender::new(false) }
    }

    /// Takes a container's name until it is created or the returned value is dropped.
    pub fn reserve(self: &Arc<Self>, id: &Identifier) -> Result<Reservation, TaskError> {
        let mut state = self.lock();
        if state.containers.len() >= MAX_CONTAINERS {
            return Err(TaskError::Invalid(format!("pod {} has {MAX_CONTAINERS} containers already", self.id)));
        }
        match state.containers.entry(id.clone()) {
            Entry::Occupied(_) => Err(TaskError::ContainerExists(id.clone())),
            Entry::Vacant(place) => {
                place.insert(None);
                state.shutdown_wanted = false;
                state.owner_gone &= *id != self.id;
                Ok(Reservation { pod: self.clone(), id: id.clone() })
            }
        }
    }

    pub fn container(&self, id: &str) -> Result<Arc<Container>, TaskError> {
        let id: Identifier = id.parse()?;
        match self.lock().containers.get(&id) {
            Some(Some(container)) => Ok(container.clone()),
            _ => Err(TaskError::NoContainer(id)),
        }
    }

    /// A container's first process, or the one that was added as `exec`.
    pub fn process(&self, container: &str, exec: &str) -> Result<(Arc<Container>, Arc<Process>), TaskError> {
        let container = self.container(container)?;
        let process = container.process(exec)?;
        Ok((container, process))
    }

    /// The same, for its deletion. A container that is being created is not there, and shall not be there later: who deletes it has given it up,
    /// and never asks again.
    pub fn process_to_delete(&self, container: &str, exec: &str) -> Result<(Arc<Container>, Arc<Process>), TaskError> {
        let id: Identifier = container.parse()?;
        {
            let mut state = self.lock();
            if exec.is_empty() && matches!(state.containers.get(&id), Some(None)) {
                state.unwanted.insert(id);
            }
        }
        self.process(container, exec)
    }

    pub fn vm(&self) -> Result<Arc<dyn MicroVm>, TaskError> {
        self.lock().vm.clone().ok_or_else(|| TaskError::NoMicroVm(self.id.clone()))
    }

    /// What a new container may share.
    pub fn shared(&self) -> SharedPod {
        let state = self.lock();
        let members = state.containers.values().flatten().filter(|container| !container.owns_vm);
        SharedPod {
            id: self.id.clone(),
            pid: state.vm.as_ref().map_or(0, |vm| vm.vmm_pid()),
            containers: members.map(|container| (container.pid, container.id.clone())).collect(),
            has_files: state.is_sandbox,
        }
    }

    /// 0 when there is no microVM.
    pub fn vmm_pid(&self) -> u32 {
        self.lock().vm.as_ref().map_or(0, |vm| vm.vmm_pid())
    }

    /// Boots the pod's microVM.
    pub async fn boot(self: &Arc<Self>, spec: SandboxSpec, config: &Config) -> Result<Arc<dyn MicroVm>, SandboxError> {
        let vm = self.boot.boot(spec, config).await?;
        self.lock().vm = Some(vm.clone());
        guest_events::watch(self, &vm);
        Ok(vm)
    }

    /// Ends the microVM, if there is one, and everything of it on the node.
    pub async fn destroy_vm(&self) {
        let vm = self.lock().vm.clone();
        if let Some(vm) = vm {
            vm.destroy().await;
            self.lock().vm = None;
        }
    }

    /// Forgets a container. The last one takes the shim with it when containerd has asked for that already.
    pub fn remove(&self, id: &Identifier) {
        let mut state = self.lock();
        state.containers.remove(id);
        state.unwanted.remove(id);
        state.apply_oom_score();
        state.owner_gone |= *id == self.id;
        if state.shutdown_wanted && state.may_end() {
            self.over.send_replace(true);
        }
    }

    /// Ends the shim unless containers are left. containerd asks after each container's end.
    pub fn shut_down(&self) {
        let mut state = self.lock();
        state.shutdown_wanted = true;
        if state.may_end() {
            self.over.send_replace(true);
        }
    }

    /// From here on only [`Self::end`] ends the shim: the pod sandbox is no container.
    pub fn is_sandbox_of_its_own(&self) {
        self.lock().is_sandbox = true;
    }

    /// Ends the shim, whatever is left.
    pub fn end(&self) {
        self.over.send_replace(true);
    }

    /// Returns when the shim is to end.
    pub async fn over(&self) {
        // The sender lives as long as `self`.
        let _ = self.over.subscribe().wait_for(|&over| over).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A container's name while it is being created.
#[derive(Debug)]
pub struct Reservation {
    pod: Arc<Pod>,
    id: Identifier,
}

impl Reservation {
    /// The name is that of `container` from now on. Given back: it was deleted meanwhile.
    pub fn fill(self, container: Arc<Container>) -> Result<(), Self> {
        let mut state = self.pod.lock();
        if state.unwanted.contains(&self.id) {
            drop(state);
            return Err(self);
        }
        state.containers.insert(self.id.clone(), Some(container));
        state.apply_oom_score();
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let unfilled = matches!(self.pod.lock().containers.get(&self.id), Some(None));
        if unfilled {
            self.pod.remove(&self.id);
        }
    }
}
