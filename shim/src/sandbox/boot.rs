//! From a specification to a guest whose agent answers.

use super::agent::Agent;
use super::cgroup::Cgroup;
use super::cleanup::{PATIENT, cleanup_on};
use super::forward::Listeners;
use super::host::{Host, SandboxDirectory, create_directories};
use super::id::SandboxId;
use super::lines::{self, Source};
use super::memory::Memory;
use super::network::{self, PodNetwork};
use super::policy::Policy;
use super::share::Places;
use super::size::{Node, Size};
use super::sockets::Sockets;
use super::state::Record;
use super::template::{self, Template};
use super::vmm::Vmm;
use super::volumes::Volumes;
use super::{Inner, PodFiles, SandboxError, SandboxSpec, uid};
use crate::clock::since_epoch;
use crate::trace;
use agent_protocol::agent::ConfigureRequest;
use agent_protocol::{AGENT_PORT, VERSION};
use bulkhead_config::Config;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use tokio::sync::OnceCell;
use tokio::time::timeout;
use vmm_protocol::{FdSlot, Jail, Machine, Restore};

/// From the VMM's start to the agent's first answer. Ten microVMs that boot at once on one emulated processor take 100 s;
/// kubelet waits for 240 s.
const BOOT: Duration = Duration::from_secs(200);

/// From the start of a VMM with a template to the agent's first answer; then the pod boots.
const RESTORE: Duration = Duration::from_secs(30);

/// For one connection to a guest that is up.
pub(super) const CONNECT: Duration = Duration::from_secs(10);

/// Bytes from the node's generator for the guest's.
const ENTROPY: usize = 64;

/// What a VMM needs, opened. Missing pieces are found before anything exists.
pub(super) struct Resources {
    pub kvm: File,
    pub kernel: File,
    pub root_image: File,
}

impl Resources {
    pub fn open(host: &Host) -> Result<Self, SandboxError> {
        for (what, path) in [("VMM", host.vmm()), ("file server", host.file_server())] {
            if !path.exists() {
                return Err(SandboxError::NotInstalled { what, path });
            }
        }
        Ok(Self {
            kvm: File::options().read(true).write(true).open("/dev/kvm").map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => SandboxError::NoKvm,
                _ => SandboxError::host("open", "/dev/kvm")(error),
            })?,
            kernel: installed("guest kernel", host.kernel())?,
            root_image: installed("guest image", host.root_image())?,
        })
    }

    /// What a machine boots with, in the order of its slots.
    pub fn descriptors<'a>(&'a self, console: &'a OwnedFd) -> [BorrowedFd<'a>; 4] {
        [self.kvm.as_fd(), self.kernel.as_fd(), self.root_image.as_fd(), console.as_fd()]
    }
}

fn installed(what: &'static str, path: PathBuf) -> Result<File, SandboxError> {
    File::open(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => SandboxError::NotInstalled { what, path },
        _ => SandboxError::host("open", &path.display())(error),
    })
}

/// Boots; what a failed attempt leaves is removed. The listeners are for whoever forwards connections.
pub(super) async fn boot(
    host: Host,
    spec: SandboxSpec,
    config: &Config,
) -> Result<(Inner, Option<Listeners>), SandboxError> {
    let resources = Resources::open(&host)?;
    let id = spec.id.clone();
    let directory = host.directory(&id);
    let claim = claim_anew(&host, &id).await?;
    trace::save_in(&directory.path);
    match prepare_and_start(&host, &spec, config, resources).await {
        Ok(Started { cgroup, size, vmm, agent, listeners }) => {
            let memory_mib = size.most_mib();
            let inner = Inner {
                host,
                _claim: claim,
                id,
                volumes: Places::new(&directory),
                directory,
                cgroup,
                oom_score: spec.oom_score,
                disk_rate: spec.disk_rate.on(config),
                memory: Memory::new(size.memory_mib, size.growth_mib),
                memory_mib,
                map_layers: config.map_layers,
                policy: Policy::new(config, &spec),
                configuration: Volumes::new(agent.clone(), vmm.stopped(), memory_mib),
                layers: tokio::sync::Mutex::default(),
                empty_dirs: super::attach::EmptyDirs::default(),
                limits: spec.storage.on(config),
                vmm,
                agent,
                file_server: OnceCell::new(),
                containers: std::sync::Mutex::default(),
                block_devices: tokio::sync::Mutex::default(),
                direct_volumes: tokio::sync::Mutex::default(),
                sockets: Sockets::new(),
                forwarding: std::sync::OnceLock::new(),
                destroyed: tokio::sync::Mutex::new(false),
            };
            Ok((inner, listeners))
        }
        Err(error) => {
            if let Err(error) = clean(&host, &id).await {
                tracing::error!(%error, "the failed sandbox left something behind");
            }
            Err(error)
        }
    }
}

struct Started {
    cgroup: Cgroup,
    size: Size,
    vmm: Vmm,
    agent: Agent,
    listeners: Option<Listeners>,
}

/// What a VMM needs on the node before it runs.
pub(super) struct Prepared {
    pub cgroup: Cgroup,
    pub uid: u32,
    size: Size,
    network: PodNetwork,
}

async fn prepare_and_start(
    host: &Host,
    spec: &SandboxSpec,
    config: &Config,
    resources: Resources,
) -> Result<Started, SandboxError> {
    let preparing = trace::span(trace::SHIM, "prepare");
    let prepared = {
        let (host, spec, config) = (host.clone(), spec.clone(), config.clone());
        // The kernel may take its time for a cgroup.
        super::attach::blocking(move || prepare(&host, &spec, &config)).await?
    };
    drop(preparing);
    let started = timeout(BOOT, start(host, spec, config, resources, prepared)).await;
    started.unwrap_or_else(|_| Err(SandboxError::deadline("booting the guest", BOOT)))
}

/// The record comes first.
pub(super) fn prepare(host: &Host, spec: &SandboxSpec, config: &Config) -> Result<Prepared, SandboxError> {
    let directory = host.directory(&spec.id);
    let cgroup = Cgroup::new(&host.cgroups, &spec.cgroup, &spec.id);
    Record { cgroup: spec.cgroup.clone(), made: cgroup.missing_parents(), netns: spec.netns.clone() }
        .write(&directory)?;
    let uid = uid::allocate(&host.uids(), config.first_uid, &spec.id, &directory.owner())?;
    let creating = trace::span(trace::SHIM, "cgroup");
    cgroup.create()?;
    drop(creating);
    let connecting = trace::span(trace::SHIM, "network of the node");
    let network = spec.netns.as_deref().map(network::connect).transpose()?.unwrap_or_default();
    drop(connecting);
    let size = spec.size.on(&Node::read(&host.cgroups, &spec.cgroup), config);
    Ok(Prepared { cgroup, uid, size, network })
}

pub(super) async fn clean(host: &Host, id: &SandboxId) -> Result<(), SandboxError> {
    let (host, id) = (host.clone(), id.clone());
    super::attach::blocking(move || cleanup_on(&host, &id, PATIENT)).await
}

/// Makes the sandbox's directory and holds it. What a process that died left of such a sandbox is removed before.
pub(super) async fn claim_anew(host: &Host, id: &SandboxId) -> Result<Flock<File>, SandboxError> {
    let directory = host.directory(id);
    if directory.path.exists() {
        // Of a shim that died. One that lives holds its claim.
        let claim = claim(&directory, id)?;
        clean(host, id).await?;
        drop(claim);
    }
    // For the node's root alone.
    create_directories(&directory.path, 0o700).map_err(SandboxError::host("create", &directory.path.display()))?;
    claim(&directory, id)
}

/// Holds the sandbox's directory for this process: no other shim takes it for a dead one's.
pub(super) fn claim(directory: &SandboxDirectory, id: &SandboxId) -> Result<Flock<File>, SandboxError> {
    let file = File::open(&directory.path).map_err(SandboxError::host("open", &directory.path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => SandboxError::InUse(id.to_string()),
        error => SandboxError::host("lock", &directory.path.display())(error),
    })
}

async fn start(
    host: &Host,
    spec: &SandboxSpec,
    config: &Config,
    resources: Resources,
    prepared: Prepared,
) -> Result<Started, SandboxError> {
    let Prepared { cgroup, uid, size, network } = prepared;
    let (vmm, agent) = match restored(host, spec, config, &resources, &cgroup, uid, size).await {
        Ok(Some(started)) => started,
        Ok(None) => cold(host, spec, config, resources, &cgroup, uid, size).await?,
        Err(error) => {
            tracing::warn!(%error, "the template is not used: the pod boots");
            let started = cold(host, spec, config, resources, &cgroup, uid, size).await?;
            // A pod that does not boot either has the fault.
            template::remake(host);
            started
        }
    };
    let plugging = trace::span(trace::SHIM, "network of the guest");
    let listeners = network::plug(&vmm, &agent, network, sysctls(spec, true).collect()).await?;
    drop(plugging);
    Ok(Started { cgroup, size, vmm, agent, listeners })
}

/// Boots a kernel.
async fn cold(
    host: &Host,
    spec: &SandboxSpec,
    config: &Config,
    resources: Resources,
    cgroup: &Cgroup,
    uid: u32,
    size: Size,
) -> Result<(Vmm, Agent), SandboxError> {
    let vmm = Vmm::spawn(host, cgroup, spec.oom_score, spec.pod.clone())?;
    let console = console(config.debug)?;
    let machine = machine(size, config, uid);
    vmm.boot(machine, &resources.descriptors(&console), BOOT).await?;
    // The console's log ends with the VMM.
    drop((resources, console));
    let booting = trace::span(trace::SHIM, "guest boots");
    vmm.agent_ready().await?;
    drop(booting);
    let agent = connect(&vmm).await?;
    configure(&agent, spec, size, Some(vmm.started())).await?;
    Ok((vmm, agent))
}

/// Makes the machine from the node's template. `None`: there is none for it. An error, which may be the pod's own, is no reason for it not to
/// start.
async fn restored(
    host: &Host,
    spec: &SandboxSpec,
    config: &Config,
    resources: &Resources,
    cgroup: &Cgroup,
    uid: u32,
    size: Size,
) -> Result<Option<(Vmm, Agent)>, SandboxError> {
    let inputs = template::Inputs { kernel: &resources.kernel, root_image: &resources.root_image };
    let template = template::open(host, inputs, size, config).map_err(SandboxError::Template)?;
    let Some(template) = template else { return Ok(None) };
    let mut vmm = None;
    let restoring = async {
        let vmm = vmm.insert(Vmm::spawn(host, cgroup, spec.oom_score, spec.pod.clone())?);
        let console = console(config.debug)?;
        let restore = Restore {
            version: vmm_protocol::VERSION.to_owned(),
            jail: Jail { uid, gid: uid },
            vcpus: size.vcpus,
            kvm: FdSlot(0),
            memory: FdSlot(1),
            state: FdSlot(2),
            root_image: FdSlot(3),
            console: FdSlot(4),
            growth_mib: size.growth_mib,
        };
        let Template { memory, state, .. } = &template;
        let files = [&resources.kvm, memory, state, &resources.root_image].map(AsFd::as_fd);
        vmm.restore(restore, &[&files[..], &[console.as_fd()]].concat(), RESTORE).await?;
        let agent = connect(vmm).await?;
        configure(&agent, spec, size, None).await?;
        Ok(agent)
    };
    let result = timeout(RESTORE, restoring).await;
    let result = result.unwrap_or_else(|_| Err(SandboxError::deadline("restoring the template", RESTORE)));
    match (result, vmm) {
        (Ok(agent), vmm) => Ok(vmm.map(|vmm| (vmm, agent))),
        (Err(error), vmm) => {
            if let Some(vmm) = vmm {
                vmm.killer().kill("its template does not work");
                // The next one gets its user and its cgroup.
                let _ = vmm.stopped().wait_for(Option::is_some).await;
            }
            Err(error)
        }
    }
}

/// The writing end of the guest kernel's log.
pub(super) fn console(debug: bool) -> Result<OwnedFd, SandboxError> {
    let (console, writer) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(SandboxError::host("create", "the console's pipe"))?;
    lines::forward(console, Source::Console { debug })?;
    Ok(writer)
}

/// Slots are positions in the order of `descriptors` above.
pub(super) fn machine(size: Size, config: &Config, uid: u32) -> Machine {
    Machine {
        version: vmm_protocol::VERSION.to_owned(),
        jail: Jail { uid, gid: uid },
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        growth_mib: size.growth_mib,
        command_line: if config.debug { "ignore_loglevel".to_owned() } else { String::new() },
        kvm: FdSlot(0),
        kernel: FdSlot(1),
        root_image: FdSlot(2),
        console: FdSlot(3),
        debug_serial: config.debug,
        template: false,
    }
}

/// The network's settings come after its interfaces, the others before everything.
fn sysctls(spec: &SandboxSpec, of_network: bool) -> impl Iterator<Item = (String, String)> {
    spec.sysctls.clone().into_iter().filter(move |(name, _)| name.starts_with("net.") == of_network)
}

async fn connect(vmm: &Vmm) -> Result<Agent, SandboxError> {
    let _connecting = trace::span(trace::SHIM, "connect");
    Ok(Agent::new(vmm.connect(AGENT_PORT, CONNECT).await?))
}

/// `booted`: when the guest's boot began, if it has only now booted.
async fn configure(agent: &Agent, spec: &SandboxSpec, size: Size, booted: Option<u64>) -> Result<(), SandboxError> {
    let configuring = trace::span(trace::SHIM, "configure");
    let mut entropy = vec![0; ENTROPY];
    let random = File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut entropy));
    random.map_err(SandboxError::host("read", "/dev/urandom"))?;
    let now = since_epoch(SystemTime::now());
    let request = ConfigureRequest {
        hostname: spec.hostname.clone(),
        files: spec.files.clone().map(pod_files).into(),
        time_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        entropy,
        sysctls: sysctls(spec, false).collect(),
        vcpus: size.vcpus.into(),
        growth_mib: size.growth_mib,
        ..ConfigureRequest::default()
    };
    let answer = agent.configure(&request).await?;
    if trace::is_on() {
        trace::guest(&answer.moments, booted.unwrap_or(configuring.start())..trace::now(), None);
    }
    if answer.version == VERSION {
        tracing::debug!(kernel = %super::agent::printable(&answer.kernel_release), "the guest is up");
        Ok(())
    } else {
        Err(SandboxError::Version { agent: super::agent::printable(&answer.version) })
    }
}

fn pod_files(files: PodFiles) -> agent_protocol::agent::PodFiles {
    let PodFiles { hostname, hosts, resolv_conf } = files;
    agent_protocol::agent::PodFiles { hostname, hosts, resolv_conf, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_of_a_living_shim_is_not_taken_over() {
        let root = tempfile::tempdir().unwrap();
        let id = SandboxId::test("ns", "pod");
        let directory = Host::below(root.path()).directory(&id);
        create_directories(&directory.path, 0o700).unwrap();
        let held = claim(&directory, &id).unwrap();
        assert_eq!(claim(&directory, &id).unwrap_err().to_string(), "sandbox ns/pod is in use by another shim");
        drop(held);
        claim(&directory, &id).unwrap();
    }

    #[test]
    fn a_missing_piece_of_the_installation_is_named() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::below(root.path());
        let missing = |path: PathBuf| {
            let error = Resources::open(&host).err().unwrap().to_string();
            assert!(error.contains(&format!("{} is missing", path.display())), "{error}");
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        };
        missing(host.vmm());
        missing(host.file_server());
        if std::path::Path::new("/dev/kvm").exists() && nix::unistd::geteuid().is_root() {
            missing(host.kernel());
            missing(host.root_image());
        } else {
            eprintln!("SKIPPED: needs root and /dev/kvm");
        }
    }
}
