//! Making a container, and what follows its first process until the end.

use super::{Container, Process, remove};
use crate::agent::Agent;
use crate::cgroup::{Cgroup, OomCounter};
use crate::crun::Launched;
use crate::error::Error;
use crate::guest::sysctl;
use crate::id::{ContainerId, PciAddress, ProcessName};
use crate::moments::Moments;
use crate::reaper::Child;
use crate::rootfs::{Rootfs, Source};
use crate::spec::{CGROUP_PARENT, ContainerSpec, DeviceNode};
use crate::stdio::{ConsoleSocket, Stdio, Wanted};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// How long the end of a container's added processes may hold up the report of its own end.
const LAST_EXECS: Duration = Duration::from_secs(2);

/// What the shim asked for, checked.
#[derive(Debug)]
pub struct CreateRequest {
    pub id: ContainerId,
    pub spec: Vec<u8>,
    pub rootfs: Source,
    pub wanted: Wanted,
    pub pids: Pids,
    pub devices: Vec<WantedDevice>,
}

/// A disk of the guest that the container is to use as a device.
#[derive(Debug)]
pub struct WantedDevice {
    pub path: String,
    pub address: PciAddress,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub access: String,
}

impl WantedDevice {
    async fn find(self, agent: &Agent) -> Result<DeviceNode, Error> {
        let node = agent.pci.disk(&self.address).await?;
        let number = std::fs::metadata(&node).map_err(Error::system("look at", node.display()))?.rdev();
        let (major, minor) = (libc::major(number).into(), libc::minor(number).into());
        let Self { path, mode, uid, gid, access, .. } = self;
        Ok(DeviceNode { path, major, minor, mode, uid, gid, access })
    }
}

/// Whose process ids a container sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pids {
    Own,
    /// Those of all containers of the pod that ask for it.
    Pod,
    /// Those of another container and whoever else shares them.
    Container(ContainerId),
}

impl Pids {
    /// A process of the namespace to join.
    async fn member(&self, agent: &Agent) -> Result<Option<u32>, Error> {
        match self {
            Self::Own => Ok(None),
            Self::Pod => agent.pod_pids.first_process().await.map(Some),
            Self::Container(id) => {
                let container = agent.containers.get(id)?;
                container.check_running("share the process ids of")?;
                Ok(container.init.pid())
            }
        }
    }
}

impl Container {
    /// Everything that was made is taken away again when a later step fails. Tells how long the steps took.
    pub async fn create(agent: &Agent, request: CreateRequest) -> Result<Moments, Error> {
        let mut moments = Moments::default();
        let reservation = agent.containers.reserve(&request.id)?;
        let bundle = agent.paths.bundle(&request.id);
        let target = bundle.join("rootfs");
        let mut spec = ContainerSpec::for_guest(&request.spec, &request.id, &target)?;
        if let Some(bytes) = agent.pressure.most() {
            spec.expect_memory(bytes)?;
        }
        if let Some(process) = request.pids.member(agent).await? {
            spec.join_pid_namespace(process)?;
        }
        let mut devices = Vec::new();
        for device in request.devices {
            let device = device.find(agent).await?;
            spec.add_device(&device)?;
            devices.push(device);
        }
        std::fs::create_dir_all(&target).map_err(Error::system("create", target.display()))?;
        moments.note("specification, devices");
        let rootfs = match mount_rootfs(agent, &spec, request.rootfs, &target).await {
            Ok(rootfs) => rootfs,
            Err(error) => {
                std::fs::remove_dir_all(&bundle).ok();
                return Err(error);
            }
        };
        moments.note("root filesystem");
        match create_process(agent, &request.id, &spec, &bundle, request.wanted).await {
            Ok((init, child)) => {
                let container = Arc::new(Self {
                    cgroup: Cgroup::new(agent.paths.cgroups.join(CGROUP_PARENT).join(request.id.as_str())),
                    id: request.id,
                    init: Arc::new(init),
                    oom_score: spec.oom_score(),
                    devices,
                    bundle,
                    rootfs,
                    volumes: spec.shared_sources(),
                    execs: Mutex::default(),
                    paused: tokio::sync::Mutex::new(false),
                    watchers: Mutex::default(),
                });
                container.watch(agent, child);
                reservation.fill(container);
                moments.note("crun create");
                Ok(moments)
            }
            Err(error) => {
                remove::take_away(agent, &request.id, &bundle, &rootfs, &spec.shared_sources()).await;
                Err(error)
            }
        }
    }

    fn watch(self: &Arc<Self>, agent: &Agent, child: Child) {
        let oom = OomCounter::open(self.id.clone(), &self.cgroup, agent.oom_events.clone()).map(Arc::new);
        let mut watchers = self.watchers.lock().expect("no holder panics");
        if let Some(oom) = oom.clone() {
            let watching = async move {
                if let Err(error) = oom.watch().await {
                    tracing::warn!(%error, "out-of-memory kills are told late");
                }
            };
            watchers.push(tokio::spawn(watching).abort_handle());
        }
        watchers.push(tokio::spawn(follow(Arc::downgrade(self), child, oom)).abort_handle());
    }
}

async fn mount_rootfs(agent: &Agent, spec: &ContainerSpec, source: Source, target: &Path) -> Result<Rootfs, Error> {
    if !spec.shared_sources().is_empty() {
        agent.share.ensure().await?;
    }
    for (name, value) in &spec.network_sysctls {
        sysctl::set(name, value)?;
    }
    Rootfs::mount(source, target.to_owned(), agent).await
}

/// The container in crun's hands, its first process waiting for the start.
async fn create_process(
    agent: &Agent,
    id: &ContainerId,
    spec: &ContainerSpec,
    bundle: &Path,
    wanted: Wanted,
) -> Result<(Process, Child), Error> {
    let config = bundle.join("config.json");
    std::fs::write(&config, spec.to_json()).map_err(Error::system("write", config.display()))?;
    let name = ProcessName { container: id.clone(), exec: None };
    let launched = Launched { oom_score: spec.oom_score(), ..Launched::default() };
    let (stdio, child) = if spec.terminal() {
        let stdio = Stdio::terminal(wanted);
        let socket = ConsoleSocket::bind(agent.paths.scratch("console")).map_err(Error::system("listen for", &name))?;
        let child = agent.crun.create(id, bundle, Launched { console: Some(socket.path()), ..launched }).await?;
        stdio.set_terminal(socket.receive().map_err(Error::system("take the terminal of", &name))?);
        (stdio, child)
    } else {
        let (stdio, streams) = Stdio::pipes(wanted)?;
        let child = agent.crun.create(id, bundle, Launched { streams, ..launched }).await?;
        (stdio, child)
    };
    Ok((Process::new(name, stdio, Some(child.clone())), child))
}

/// Reports the container's end: after an out-of-memory kill that caused it, and after its added processes.
async fn follow(container: Weak<Container>, mut child: Child, oom: Option<Arc<OomCounter>>) {
    let exit = child.wait().await;
    let Some(container) = container.upgrade() else { return };
    if let Some(oom) = oom {
        oom.check();
    }
    // Without a pid namespace of its own, the rest would live on.
    if let Err(error) = container.cgroup.kill() {
        tracing::warn!(container = %container.id, %error, "processes may be left");
    }
    let execs: Vec<_> = container.execs().values().map(|exec| Arc::clone(&exec.process)).collect();
    let running = execs.iter().filter(|process| process.pid().is_some());
    let ended = futures::future::join_all(running.map(|process| process.end()));
    if tokio::time::timeout(LAST_EXECS, ended).await.is_err() {
        tracing::warn!(container = %container.id, "an added process outlives its container");
    }
    container.init.ended(exit);
}
