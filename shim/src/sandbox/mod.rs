//! The pod sandbox as the shim sees it: one microVM, the files it may reach, and everything on the node that
//! exists only because of it.
//!
//! ```text
//! SandboxSpec::from_oci   what to boot; pure, refuses what it can't honour
//! Sandbox::boot           state record, user id, cgroup, VMM, guest, agent
//! ContainerPlan::new      what a container needs; pure, refuses what a microVM cannot give
//! Sandbox::attach         a container's root filesystem and host mounts, and its spec as the guest sees it
//! Sandbox::agent          the agent's calls, each with a deadline
//! Sandbox::destroy        all of it goes, within a bound; `cleanup` does the same for a shim that died
//! ```
//!
//! Nothing that the guest or its VMM says selects an object of the node.

mod agent;
mod attach;
mod boot;
mod cgroup;
mod cleanup;
mod clock;
mod devices;
mod error;
mod file_id;
mod forward;
mod guest_spec;
mod host;
mod id;
mod labels;
mod layers;
mod lines;
mod memory;
mod mount;
mod mountinfo;
mod network;
pub mod oci;
mod policy;
mod process;
mod rate;
mod rootfs;
mod share;
mod shared;
mod size;
mod sockets;
mod spec;
mod state;
mod storage;
mod template;
mod uid;
mod vmm;
mod volumes;

pub(crate) use agent::printable;
pub use agent::{Agent, AgentError};
pub use attach::ContainerPlan;
pub use error::SandboxError;
pub use guest_spec::{check_pod, guest_process, guest_resources};
pub use shared::Pod as SharedPod;
pub use size::{POD_MEMORY, POD_PERIOD, POD_QUOTA, memory_limit};
pub use spec::{POD_NAME, POD_NAMESPACE, POD_UID, PodFiles, SandboxSpec, SpecError, check_annotations, oom_score};

use crate::identifier::Identifier;
use crate::trace;
use agent_protocol::STREAM_PORT;
use agent_protocol::agent::{Empty, SocketConnection};
use agent_protocol::stream::{ACCEPTED, Hello};
use bulkhead_config::Config;
use cgroup::Cgroup;
use host::{Host, SandboxDirectory};
use id::SandboxId;
use nix::fcntl::Flock;
use policy::Policy;
use process::Process;
use share::Places;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{OnceCell, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use vmm::Vmm;
use volumes::Volumes;

/// For the guest to sync its file systems at the end.
const SHUTDOWN: Duration = Duration::from_secs(2);

/// From SIGKILL to the end of the VMM.
const KILL: Duration = Duration::from_secs(5);

/// For the agent to accept a stream.
const ACCEPT: Duration = Duration::from_secs(10);

/// A mount that containerd asks for, as in the `rootfs` of a create request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `overlay`, `bind`, `ext4`…
    pub kind: String,
    pub source: PathBuf,
    pub options: Vec<String>,
}

/// A container that is to be attached.
#[derive(Clone, Debug)]
pub struct Container<'a> {
    pub id: &'a Identifier,
    /// `config.json` as containerd wrote it.
    pub spec: &'a oci::Spec,
    /// `None`: it is alone in its microVM.
    pub pod: Option<&'a SharedPod>,
    /// Empty: the root filesystem is `root.path` of the spec.
    pub rootfs: &'a [Mount],
    pub bundle: &'a Path,
}

/// What the agent's `CreateContainer` needs to know about an attached container.
#[derive(Clone, Debug, PartialEq)]
pub struct Attached {
    pub rootfs: agent_protocol::agent::create_container_request::Rootfs,
    /// The OCI specification (JSON) as the guest is to see it.
    pub spec: Vec<u8>,
    /// Whose process ids the container sees; `None` is its own.
    pub pids: Option<agent_protocol::agent::create_container_request::Pid_namespace>,
    /// Disks that it uses as devices.
    pub devices: Vec<agent_protocol::agent::DeviceNode>,
}

/// One running microVM. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Sandbox {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    host: Host,
    /// Released by the kernel when this process ends, however it ends.
    _claim: Flock<File>,
    id: SandboxId,
    directory: SandboxDirectory,
    cgroup: Cgroup,
    oom_score: u16,
    /// Of each disk.
    disk_rate: vmm_protocol::RateLimit,
    memory: memory::Memory,
    /// All that it may become.
    memory_mib: u32,
    /// The operator lets guests map image layers.
    map_layers: bool,
    /// Which paths of the node its containers may mount.
    policy: Policy,
    /// What is copied into the guest instead of shared.
    configuration: Volumes,
    /// Where they see them.
    volumes: Places,
    /// What its containers' image layers are attached as.
    layers: tokio::sync::Mutex<layers::Registry>,
    empty_dirs: attach::EmptyDirs,
    /// What its containers may write to disks.
    limits: storage::Limits,
    vmm: Vmm,
    agent: Agent,
    /// Runs since the first container that needed it.
    file_server: OnceCell<Process>,
    containers: Mutex<Containers>,
    /// Devices of the node that they use as such.
    block_devices: tokio::sync::Mutex<attach::BlockDevices>,
    /// File systems on devices of the node that the guest has mounted.
    direct_volumes: tokio::sync::Mutex<attach::DirectVolumes>,
    sockets: sockets::Sockets,
    /// Connections to the pod's ports on the node; `None` without a network.
    forwarding: OnceLock<AbortHandle>,
    destroyed: tokio::sync::Mutex<bool>,
}

/// The attached containers, each with its disks.
type Containers = HashMap<Identifier, Vec<attach::Disk>>;

impl Sandbox {
    /// Boots a microVM to "agent ready". When it fails, nothing of it is left on the node. Takes up to 200 s.
    pub async fn boot(spec: SandboxSpec, config: &Config) -> Result<Self, SandboxError> {
        let host = Host::of_this_program()?;
        let sandbox = trace::span(trace::SHIM, "sandbox");
        let (inner, listeners) = boot::boot(host.clone(), spec, config).await?;
        drop(sandbox);
        trace::save();
        tokio::task::spawn_blocking(move || cleanup::sweep(&host));
        let inner = Arc::new(inner);
        tokio::spawn(clock::keep(inner.agent.clone(), inner.vmm.stopped()));
        if let Some(listeners) = listeners {
            let task = tokio::spawn(forward::serve(listeners, Arc::downgrade(&inner)));
            // Set once: this is the only place.
            let _ = inner.forwarding.set(task.abort_handle());
        }
        Ok(Self { inner })
    }

    /// The agent in the guest.
    pub fn agent(&self) -> &Agent {
        &self.inner.agent
    }

    /// The VMM's process id on the node: the pid that containerd gets for every process of the pod.
    pub fn vmm_pid(&self) -> u32 {
        self.inner.vmm.pid()
    }

    /// The guest needs more memory soon. Returns at once.
    pub fn grow(&self) {
        memory::grow(&self.inner);
    }

    /// What the guest's memory may become.
    pub fn memory_mib(&self) -> u32 {
        self.inner.memory_mib
    }

    /// How early the microVM goes when the node runs out of memory.
    pub fn set_oom_score(&self, score: u16) {
        for process in [self.inner.vmm.process()].into_iter().chain(self.inner.file_server.get()) {
            if let Err(error) = process.set_oom_score(score) {
                tracing::warn!(pid = process.pid(), score, %error, "the OOM score is not set");
            }
        }
    }

    /// Holds the reason once the microVM is gone, whatever ended it.
    pub fn stopped(&self) -> watch::Receiver<Option<String>> {
        self.inner.vmm.stopped()
    }

    /// Opens one stdio channel; returns after the agent accepted it. What follows is `agent_protocol::stream` frames.
    pub async fn open_stream(&self, hello: &Hello) -> Result<UnixStream, SandboxError> {
        let failed = || SandboxError::host("open", &format!("stream {:?} to the guest", hello.channel));
        let mut stream = self.inner.vmm.connect(STREAM_PORT, boot::CONNECT).await?;
        let greet = async {
            stream.write_all(&hello.encode().map_err(io::Error::other)?).await?;
            stream.read_u8().await
        };
        match timeout(ACCEPT, greet).await {
            Ok(Ok(ACCEPTED)) => Ok(stream),
            Ok(Ok(_)) => Err(failed()(io::Error::other("the agent refused it"))),
            Ok(Err(error)) => Err(failed()(error)),
            Err(_) => Err(SandboxError::deadline("opening a stream to the guest", ACCEPT)),
        }
    }

    /// Makes a container's root filesystem and host mounts reachable for the guest. When it fails, nothing is attached.
    pub async fn attach(&self, plan: &ContainerPlan) -> Result<Attached, SandboxError> {
        if self.inner.containers().contains_key(&plan.id) {
            return Err(SandboxError::AlreadyAttached(plan.id.to_string()));
        }
        self.inner.containers().insert(plan.id.clone(), Vec::new());
        let result = self.inner.attach(plan).await;
        if result.is_err()
            && let Err(error) = self.inner.detach(&plan.id).await
        {
            tracing::error!(container = %plan.id, %error, "the failed container left something behind");
        }
        result
    }

    /// Brings what a container that has ended leaves for the node back to it. Takes 2 s at most.
    pub async fn take_back(&self, container: &Identifier) {
        self.inner.configuration.take_back(container).await;
    }

    /// Carries a connection of a program in the guest to the socket of the node that it is for. Returns at once.
    pub fn carry(&self, connection: &SocketConnection) {
        sockets::carry(&self.inner, connection);
    }

    /// Takes back what [`Self::attach`] gave. Call it after the agent's `Delete`. Idempotent; works without the guest.
    pub async fn detach(&self, container_id: &Identifier) -> Result<(), SandboxError> {
        self.inner.detach(container_id).await
    }

    /// Of [`Self::detach`] what matters when the microVM goes with the container: what was written to direct volumes reaches their
    /// devices.
    pub async fn write_back(&self, container_id: &Identifier) -> Result<(), SandboxError> {
        let alive = self.inner.vmm.stopped().borrow().is_none();
        self.inner.detach_direct(container_id, alive).await
    }

    /// Ends the VMM at once, without asking the guest. [`Self::stopped`] tells when it is gone.
    pub fn kill(&self, reason: &str) {
        self.inner.vmm.killer().kill(reason);
    }

    /// Shuts the guest down (2 s at most, so that its file systems are synced), then removes all that the sandbox
    /// has on the node. Direct volumes that containers have let go are written back before. Idempotent.
    pub async fn destroy(&self) {
        let mut destroyed = self.inner.destroyed.lock().await;
        if !*destroyed {
            self.inner.destroy().await;
            *destroyed = true;
        }
    }
}

impl Inner {
    /// The guest's files are gone with their server, and so is the sense of the guest.
    fn end_with(&self, server: &Process) {
        let (mut ended, vmm) = (server.ended(), self.vmm.killer().clone());
        tokio::spawn(async move {
            let ended = ended.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone());
            vmm.kill(&ended.unwrap_or_else(|| "the file server ended".to_owned()));
        });
    }

    async fn destroy(&self) {
        if let Some(forwarding) = self.forwarding.get() {
            forwarding.abort();
        }
        self.configuration.end();
        // One that is being let go is written back, and the end of the guest would end that.
        let written = timeout(agent::WRITE_BACK, self.direct_volumes.lock()).await.is_ok();
        if !written {
            tracing::error!(
                "a direct volume is not written back after {} s: the pod ends",
                agent::WRITE_BACK.as_secs()
            );
        }
        let mut stopped = self.vmm.stopped();
        let shutdown = async {
            // The answer may be lost with the guest; what counts is that the guest stops.
            let _ = self.agent.shutdown(&Empty::default()).await;
            stopped.wait_for(Option::is_some).await.is_ok()
        };
        if timeout(SHUTDOWN, shutdown).await.is_err() {
            self.vmm.killer().kill("the guest did not shut down in time");
            let _ = timeout(KILL, self.vmm.stopped().wait_for(Option::is_some)).await;
        }
        let (host, id) = (self.host.clone(), self.id.clone());
        // There is no use in waiting again for a process that could not be killed.
        let limit = if self.vmm.process().ended().borrow().is_some() { cleanup::PATIENT } else { cleanup::BRIEF };
        if let Err(error) = attach::apart(move || cleanup::cleanup_on(&host, &id, limit)).await {
            tracing::error!(%error, "the sandbox left something behind");
        }
    }
}

/// Whether the node's template is there and fits.
pub fn has_template(config: &Config) -> Result<bool, SandboxError> {
    template::exists(&Host::of_this_program()?, config)
}

/// Makes the node's template anew.
pub async fn build_template(config: &Config) -> Result<(), SandboxError> {
    template::build(Host::of_this_program()?, config).await
}

/// What of pods starts from the node's template, after a look at every byte of it.
pub fn check_template(config: &Config) -> Result<String, SandboxError> {
    template::check(&Host::of_this_program()?, config)
}

/// Removes what a sandbox left on the node, from its recorded state alone: for `delete`, after the shim died.
/// Idempotent; a sandbox that never existed is fine. Takes less than 5 s and never asks the guest.
pub fn cleanup(namespace: &Identifier, id: &Identifier) -> Result<(), SandboxError> {
    cleanup::cleanup_on(&Host::of_this_program()?, &SandboxId::new(namespace, id), cleanup::BRIEF)
}
