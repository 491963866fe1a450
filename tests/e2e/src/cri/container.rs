//! A container of a pod.

use super::messages::{
    AttachRequest, ContainerConfig, ContainerId, ContainerMetadata, ContainerState, ContainerStats,
    ContainerStatsResponse, ContainerStatus, ContainerStatusResponse, CreateContainerRequest, Empty, ExecRequest,
    ExecSyncRequest, ExecSyncResponse, ImageSpec, KeyValue, LinuxContainerResources, LinuxContainerSecurityContext,
    Mount, StopContainerRequest, StreamUrl, UpdateContainerResourcesRequest,
};
use super::{Log, Pod, Session, Status, call};
use crate::{Finished, eventually};
use std::time::Duration;

/// What to run.
#[derive(Clone, Debug)]
pub struct NewContainer<'pod> {
    pod: &'pod Pod,
    config: ContainerConfig,
}

impl<'pod> NewContainer<'pod> {
    pub(super) fn new(pod: &'pod Pod, name: &str, image: &str) -> Self {
        let mut config = ContainerConfig::new();
        config.metadata = Some(ContainerMetadata { name: name.into(), ..Default::default() }).into();
        config.image = Some(ImageSpec { image: image.into(), ..Default::default() }).into();
        // kubelet asks for the pod's process namespace, or for none, in each container again.
        let options = pod.config().linux.security_context.namespace_options.clone();
        Self { pod, config }.attempt(0).security(|security| security.namespace_options = options)
    }

    /// The configuration, for what has no builder.
    pub fn config(mut self, change: impl FnOnce(&mut ContainerConfig)) -> Self {
        change(&mut self.config);
        self
    }

    pub fn command(self, command: &[&str]) -> Self {
        self.config(|config| config.command = command.iter().map(|&word| word.into()).collect())
    }

    pub fn shell(self, script: &str) -> Self {
        self.command(&["/bin/sh", "-c", script])
    }

    /// Which restart of the container this is. Its log has the same number.
    pub fn attempt(self, attempt: u32) -> Self {
        self.config(|config| {
            let metadata = config.metadata.mut_or_insert_default();
            metadata.attempt = attempt;
            config.log_path = format!("{}/{attempt}.log", metadata.name);
        })
    }

    pub fn env(self, key: &str, value: &str) -> Self {
        let variable = KeyValue { key: key.into(), value: value.into(), ..Default::default() };
        self.config(|config| config.envs.push(variable))
    }

    /// Shows a path of the node.
    pub fn mount(self, host: &str, container: &str) -> Self {
        let mount = Mount { host_path: host.into(), container_path: container.into(), ..Default::default() };
        self.config(|config| config.mounts.push(mount))
    }

    /// Input comes from whoever attaches; with `once`, it ends when the first one leaves.
    pub fn stdin(self, once: bool) -> Self {
        self.config(|config| (config.stdin, config.stdin_once) = (true, once))
    }

    pub fn tty(self) -> Self {
        self.config(|config| config.tty = true)
    }

    pub fn security(self, change: impl FnOnce(&mut LinuxContainerSecurityContext)) -> Self {
        self.config(|config| change(config.linux.mut_or_insert_default().security_context.mut_or_insert_default()))
    }

    pub fn resources(self, change: impl FnOnce(&mut LinuxContainerResources)) -> Self {
        self.config(|config| change(config.linux.mut_or_insert_default().resources.mut_or_insert_default()))
    }

    pub fn memory_limit(self, bytes: i64) -> Self {
        self.resources(|resources| resources.memory_limit_in_bytes = bytes)
    }

    /// Like kubelet, makes the log's directory first.
    pub fn try_create(self) -> Result<Container<'pod>, Status> {
        let log = Log::new(self.pod.logs().join(&self.config.log_path));
        let directory = log.path().parent().expect("a log lies in a directory");
        std::fs::create_dir_all(directory).expect("a log directory");
        let mut request = CreateContainerRequest::new();
        request.pod_sandbox_id = self.pod.id().into();
        request.sandbox_config = Some(self.pod.config().clone()).into();
        let tty = self.config.tty;
        request.config = Some(self.config).into();
        let id: ContainerId = call("RuntimeService/CreateContainer", &request)?;
        Ok(Container { pod: self.pod, id: id.container_id, log, tty })
    }

    #[track_caller]
    pub fn create(self) -> Container<'pod> {
        self.try_create().unwrap_or_else(|status| panic!("the container cannot be created: {status}"))
    }

    #[track_caller]
    pub fn start(self) -> Container<'pod> {
        let container = self.create();
        container.start().unwrap_or_else(|status| panic!("the container does not start: {status}"));
        container
    }
}

/// A container that was created. Its pod removes it.
#[derive(Debug)]
pub struct Container<'pod> {
    pod: &'pod Pod,
    id: String,
    log: Log,
    tty: bool,
}

impl Container<'_> {
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn pod(&self) -> &Pod {
        self.pod
    }

    pub fn log(&self) -> &Log {
        &self.log
    }

    pub fn start(&self) -> Result<(), Status> {
        call::<Empty>("RuntimeService/StartContainer", &self.request()).map(drop)
    }

    /// SIGTERM, and SIGKILL after the grace.
    pub fn stop(&self, grace: Duration) -> Result<(), Status> {
        let mut request = StopContainerRequest::new();
        request.container_id.clone_from(&self.id);
        request.timeout = i64::try_from(grace.as_secs()).expect("a short time");
        call::<Empty>("RuntimeService/StopContainer", &request).map(drop)
    }

    pub fn remove(&self) -> Result<(), Status> {
        call::<Empty>("RuntimeService/RemoveContainer", &self.request()).map(drop)
    }

    pub fn try_status(&self) -> Result<ContainerStatus, Status> {
        let response: ContainerStatusResponse = call("RuntimeService/ContainerStatus", &self.request())?;
        Ok(response.status.unwrap_or_default())
    }

    #[track_caller]
    pub fn status(&self) -> ContainerStatus {
        self.try_status().unwrap_or_else(|status| panic!("the container has no status: {status}"))
    }

    pub fn running(&self) -> bool {
        self.status().state == ContainerState::CONTAINER_RUNNING.into()
    }

    /// Waits for the end and returns the exit code.
    #[track_caller]
    pub fn wait(&self) -> i32 {
        eventually("the container has ended", || self.status().state == ContainerState::CONTAINER_EXITED.into());
        self.status().exit_code
    }

    /// Runs a command as an exec probe does. `timeout` in whole seconds; none is for ever.
    pub fn try_exec(&self, command: &[&str], timeout: Option<Duration>) -> Result<Finished, Status> {
        let mut request = ExecSyncRequest::new();
        request.container_id.clone_from(&self.id);
        request.cmd = command.iter().map(|&word| word.into()).collect();
        request.timeout = timeout.map_or(0, |timeout| i64::try_from(timeout.as_secs()).expect("a short time"));
        let done: ExecSyncResponse = call("RuntimeService/ExecSync", &request)?;
        Ok(Finished { code: done.exit_code, stdout: done.stdout, stderr: done.stderr })
    }

    #[track_caller]
    pub fn exec(&self, command: &[&str]) -> Finished {
        self.try_exec(command, None).unwrap_or_else(|status| panic!("{command:?} does not run: {status}"))
    }

    #[track_caller]
    pub fn shell(&self, script: &str) -> Finished {
        self.exec(&["/bin/sh", "-c", script])
    }

    /// Runs a command with streams, as `kubectl exec -i` does, or `-it` with a `tty`.
    #[track_caller]
    pub fn exec_streams(&self, command: &[&str], tty: bool) -> Session {
        let mut request = ExecRequest::new();
        request.container_id.clone_from(&self.id);
        request.cmd = command.iter().map(|&word| word.into()).collect();
        (request.tty, request.stdin, request.stdout, request.stderr) = (tty, true, true, !tty);
        let url: StreamUrl = call("RuntimeService/Exec", &request).expect("a place to run from");
        Session::open(&url.url)
    }

    /// The streams of the container itself, as `kubectl attach` does, with `-i` if there is `stdin`.
    #[track_caller]
    pub fn attach(&self, stdin: bool) -> Session {
        let mut request = AttachRequest::new();
        request.container_id.clone_from(&self.id);
        (request.tty, request.stdin, request.stdout, request.stderr) = (self.tty, stdin, true, !self.tty);
        let url: StreamUrl = call("RuntimeService/Attach", &request).expect("a place to attach to");
        Session::open(&url.url)
    }

    pub fn try_stats(&self) -> Result<ContainerStats, Status> {
        let response: ContainerStatsResponse = call("RuntimeService/ContainerStats", &self.request())?;
        Ok(response.stats.unwrap_or_default())
    }

    #[track_caller]
    pub fn stats(&self) -> ContainerStats {
        self.try_stats().unwrap_or_else(|status| panic!("the container has no stats: {status}"))
    }

    pub fn update(&self, change: impl FnOnce(&mut LinuxContainerResources)) -> Result<(), Status> {
        let mut request = UpdateContainerResourcesRequest::new();
        request.container_id.clone_from(&self.id);
        change(request.linux.mut_or_insert_default());
        call::<Empty>("RuntimeService/UpdateContainerResources", &request).map(drop)
    }

    /// Tells containerd that the log's file was renamed.
    pub fn reopen_log(&self) -> Result<(), Status> {
        call::<Empty>("RuntimeService/ReopenContainerLog", &self.request()).map(drop)
    }

    fn request(&self) -> ContainerId {
        ContainerId { container_id: self.id.clone(), ..Default::default() }
    }
}
