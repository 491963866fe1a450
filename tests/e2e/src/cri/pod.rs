//! A pod sandbox, stopped and removed when the test ends however it ends.

use super::messages::{
    Empty, LinuxContainerResources, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, ListPodSandboxResponse,
    NamespaceMode, NamespaceOption, PodSandbox, PodSandboxConfig, PodSandboxId, PodSandboxMetadata, PodSandboxState,
    PodSandboxStats, PodSandboxStatsResponse, PodSandboxStatus, PodSandboxStatusResponse, PortForwardRequest,
    PortMapping, RunPodSandboxRequest, StreamUrl,
};
use super::{NewContainer, Sandboxer, Status, Tunnel, call};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Where kubelet keeps the cgroups of pods.
const PODS_CGROUP: &str = "/kubepods";

/// Where it keeps their volumes.
const PODS: &str = "/var/lib/kubelet/pods";

/// Its `overhead` is part of a pod's limits.
const RUNTIME_CLASS: &str = include_str!("../../../../runtimeclass.yaml");

/// What to run.
#[derive(Clone, Debug)]
pub struct NewPod {
    config: PodSandboxConfig,
    handler: String,
}

impl NewPod {
    /// The pod's configuration, for what has no builder.
    pub fn config(mut self, change: impl FnOnce(&mut PodSandboxConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// The sandbox's security context.
    pub fn security(self, change: impl FnOnce(&mut LinuxSandboxSecurityContext)) -> Self {
        self.config(|config| change(config.linux.mut_or_insert_default().security_context.mut_or_insert_default()))
    }

    pub fn namespaces(self, change: impl FnOnce(&mut NamespaceOption)) -> Self {
        self.security(|security| change(security.namespace_options.mut_or_insert_default()))
    }

    /// `shareProcessNamespace: true`.
    pub fn shared_processes(self) -> Self {
        self.namespaces(|options| options.pid = NamespaceMode::POD.into())
    }

    /// Forwards a port of the node.
    pub fn host_port(self, host: u16, container: u16) -> Self {
        let mapping = PortMapping { host_port: host.into(), container_port: container.into(), ..Default::default() };
        self.config(|config| config.port_mappings.push(mapping))
    }

    pub fn annotation(self, key: &str, value: &str) -> Self {
        self.config(|config| drop(config.annotations.insert(key.into(), value.into())))
    }

    /// The sum of the containers' memory limits, each of which has one.
    pub fn memory_limits(self, bytes: i64) -> Self {
        let sum = |limits: &mut LinuxContainerResources| limits.memory_limit_in_bytes = bytes;
        self.config(|config| sum(config.linux.mut_or_insert_default().resources.mut_or_insert_default()))
    }

    /// With a cgroup as kubelet makes it through systemd.
    pub fn in_a_slice(self) -> Self {
        let pod = self.config.metadata.uid.replace('-', "_");
        self.config(|config| {
            config.linux.mut_or_insert_default().cgroup_parent = format!("{PODS_CGROUP}.slice/kubepods-pod{pod}.slice");
        })
    }

    /// kubelet's directory for the pod. Nothing makes or removes it.
    pub fn directory(&self) -> PathBuf {
        Path::new(PODS).join(&self.config.metadata.uid)
    }

    /// With another runtime handler.
    pub fn handler(mut self, handler: &str) -> Self {
        self.handler = handler.into();
        self
    }

    #[track_caller]
    pub fn run(self) -> Pod {
        self.try_run().unwrap_or_else(|status| panic!("the pod does not run: {status}"))
    }

    /// Like kubelet, makes the pod's cgroup and log directory first.
    pub fn try_run(self) -> Result<Pod, Status> {
        let mut pod = Pod { id: String::new(), config: self.config };
        fs::create_dir_all(&pod.config.log_directory).expect("a log directory");
        make_cgroup(&pod.config.linux);
        let mut request = RunPodSandboxRequest::new();
        request.config = Some(pod.config.clone()).into();
        request.runtime_handler = self.handler;
        let id: PodSandboxId = call("RuntimeService/RunPodSandbox", &request)?;
        pod.id = id.pod_sandbox_id;
        Ok(pod)
    }
}

/// A pod that runs, or did.
#[derive(Debug)]
pub struct Pod {
    /// Empty if it never ran.
    id: String,
    config: PodSandboxConfig,
}

impl Pod {
    /// A pod as kubelet would ask for it: processes of a container see only each other.
    #[expect(clippy::new_ret_no_self, reason = "a pod comes into being by `run`")]
    pub fn new(name: &str, sandboxer: Sandboxer) -> NewPod {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let uid = format!("e2e-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut linux = LinuxPodSandboxConfig::new();
        linux.cgroup_parent = format!("{PODS_CGROUP}/pod{uid}");
        let mut metadata = PodSandboxMetadata::new();
        metadata.name = name.into();
        metadata.namespace = "default".into();
        metadata.uid.clone_from(&uid);
        let mut config = PodSandboxConfig::new();
        config.hostname = name.into();
        config.log_directory = format!("/var/log/pods/default_{name}_{uid}");
        config.metadata = Some(metadata).into();
        config.linux = Some(linux).into();
        let pod = NewPod { config, handler: handler(sandboxer) };
        pod.namespaces(|options| options.pid = NamespaceMode::CONTAINER.into())
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn config(&self) -> &PodSandboxConfig {
        &self.config
    }

    /// A container to be made in this pod.
    pub fn container(&self, name: &str, image: &str) -> NewContainer<'_> {
        NewContainer::new(self, name, image)
    }

    #[track_caller]
    pub fn status(&self) -> PodSandboxStatus {
        let response = call::<PodSandboxStatusResponse>("RuntimeService/PodSandboxStatus", &self.request());
        response.expect("the pod is known").status.unwrap_or_default()
    }

    pub fn ready(&self) -> bool {
        self.status().state == PodSandboxState::SANDBOX_READY.into()
    }

    /// The first address; empty without a network.
    #[track_caller]
    pub fn ip(&self) -> String {
        self.status().network.ip.clone()
    }

    #[track_caller]
    pub fn stats(&self) -> PodSandboxStats {
        let response = call::<PodSandboxStatsResponse>("RuntimeService/PodSandboxStats", &self.request());
        response.expect("the pod is measured").stats.unwrap_or_default()
    }

    /// A connection to a port of the pod, as `kubectl port-forward` makes it.
    #[track_caller]
    pub fn port_forward(&self, port: u16) -> Tunnel {
        let request =
            PortForwardRequest { pod_sandbox_id: self.id.clone(), port: vec![port.into()], ..Default::default() };
        let url: StreamUrl = call("RuntimeService/PortForward", &request).expect("a place to forward from");
        Tunnel::open(&url.url, port)
    }

    pub fn stop(&self) -> Result<(), Status> {
        call::<Empty>("RuntimeService/StopPodSandbox", &self.request()).map(drop)
    }

    /// Also removes what containers are left in it.
    pub fn remove(&self) -> Result<(), Status> {
        call::<Empty>("RuntimeService/RemovePodSandbox", &self.request()).map(drop)
    }

    /// Every pod that the CRI plugin knows.
    #[track_caller]
    pub fn all() -> Vec<PodSandbox> {
        let response = call::<ListPodSandboxResponse>("RuntimeService/ListPodSandbox", &Empty::new());
        response.expect("a list").items
    }

    /// On the node.
    pub fn cgroup(&self) -> PathBuf {
        cgroup_directory(&self.config.linux.cgroup_parent)
    }

    /// The directory of its containers' logs.
    pub fn logs(&self) -> PathBuf {
        PathBuf::from(&self.config.log_directory)
    }

    fn request(&self) -> PodSandboxId {
        PodSandboxId { pod_sandbox_id: self.id.clone(), ..Default::default() }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if !self.id.is_empty() {
            for (verb, result) in [("stopped", self.stop()), ("removed", self.remove())] {
                if let Err(status) = result {
                    eprintln!("pod {} cannot be {verb}: {status}", self.id);
                }
            }
        }
        fs::remove_dir_all(&self.config.log_directory).ok();
        let cgroup = self.cgroup();
        fs::remove_dir(&cgroup).ok();
        // The last pod takes their parent along.
        cgroup.parent().map(fs::remove_dir);
    }
}

/// Whoever wonders whether a failure is the runtime's sets another handler, such as runc's.
fn handler(sandboxer: Sandboxer) -> String {
    std::env::var("E2E_HANDLER").unwrap_or_else(|_| sandboxer.handler().into())
}

fn cgroup_directory(cgroup: &str) -> PathBuf {
    PathBuf::from(format!("/sys/fs/cgroup{cgroup}"))
}

/// Makes a pod's cgroup with every controller that limits and counts. Like kubelet, limits it by the sums of the
/// containers' limits and the overhead; without sums, some container has no limit, and neither has the pod.
fn make_cgroup(linux: &LinuxPodSandboxConfig) {
    let directory = cgroup_directory(&linux.cgroup_parent);
    fs::create_dir_all(&directory).expect("a cgroup for the pod");
    for parent in directory.ancestors().skip(1).take(2).collect::<Vec<_>>().into_iter().rev() {
        fs::write(parent.join("cgroup.subtree_control"), "+cpu +cpuset +io +memory +pids").expect("controllers");
    }
    let limits = &linux.resources;
    if limits.memory_limit_in_bytes > 0 {
        let most = limits.memory_limit_in_bytes + (overhead("memory", "Mi") << 20);
        fs::write(directory.join("memory.max"), most.to_string()).expect("a limit for the pod's memory");
    }
    if limits.cpu_quota > 0 {
        let quota = limits.cpu_quota + overhead("cpu", "m") * limits.cpu_period / 1000;
        fs::write(directory.join("cpu.max"), format!("{quota} {}", limits.cpu_period)).expect("a limit for the pod");
    }
}

/// A number of the runtime class's `podFixed`.
fn overhead(resource: &str, unit: &str) -> i64 {
    let key = format!("{resource}: ");
    let value = RUNTIME_CLASS.lines().find_map(|line| line.trim().strip_prefix(&key)?.strip_suffix(unit));
    value.and_then(|value| value.parse().ok()).expect("a number of this unit")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overhead_is_that_of_the_runtime_class() {
        assert!(overhead("memory", "Mi") > 64 && overhead("cpu", "m") > 0);
    }
}
