//! A guest's surroundings, made of namespaces, and a shim's side of the protocol.

use agent_protocol::agent::create_container_request::Pid_namespace;
use agent_protocol::agent::{
    ConfigureRequest, CreateContainerRequest, CreateProcessRequest, ProcessRequest, SignalRequest, Streams,
    create_container_request,
};
use agent_protocol::stream::{ACCEPTED, Channel, Frame, HEADER, Hello};
use agent_protocol::{SHARE_MOUNT, agent_ttrpc};
use bulkhead_agent::agent::{Agent, Paths};
use bulkhead_agent::pci::PciBus;
use bulkhead_agent::reaper::Reaper;
use bulkhead_agent::rootfs::Share;
use bulkhead_agent::rpc::Service;
use bulkhead_agent::streams;
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use ttrpc::context::Context;

const CRUN: &str = "BULKHEAD_TEST_CRUN";
const INSIDE: &str = "BULKHEAD_TEST_INSIDE";
const RUN: &str = "/run/bulkhead";
const CGROUPS: &str = "/sys/fs/cgroup";

/// Runs `test` in a process with a guest's surroundings, or says that it can't.
pub fn in_guest(name: &str, test: impl AsyncFnOnce(&Guest)) {
    let Some(crun) = std::env::var_os(CRUN).map(PathBuf::from) else {
        return eprintln!("skipped: {CRUN} is not set");
    };
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: not root");
    }
    if std::env::var_os(INSIDE).is_none() {
        let mut inside = Command::new("unshare");
        inside.args(["--mount", "--pid", "--fork", "--mount-proc", "--propagation", "private", "--kill-child"]);
        inside.arg(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]);
        assert!(inside.env(INSIDE, "1").status().unwrap().success(), "{name} failed inside");
        return;
    }
    surround();
    let _cgroup = OwnCgroup::enter(name);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let guest = Guest::new(&crun).await;
        let limit = Duration::from_secs(60);
        tokio::time::timeout(limit, test(&guest)).await.expect("the test takes too long");
    });
}

fn surround() {
    mount_fs("tmpfs", "/run");
    let rootfs = Path::new(SHARE_MOUNT).join("machine/rootfs");
    std::fs::create_dir_all(&rootfs).unwrap();
    mount(Some("/"), &rootfs, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

/// A cgroup of this test's own, which is the root of what it sees.
struct OwnCgroup {
    machine: PathBuf,
    own: PathBuf,
}

impl OwnCgroup {
    fn enter(name: &str) -> Self {
        let machine = PathBuf::from("/run/cgroups");
        std::fs::create_dir(&machine).unwrap();
        mount_fs("cgroup2", machine.to_str().unwrap());
        // Two runs of the same tests may be under way; the pids in here are the same in both.
        let started = std::fs::metadata("/proc/self/ns/pid").unwrap().ino();
        let own = machine.join(format!("bulkhead-test-{started}-{name}"));
        std::fs::create_dir(&own).unwrap();
        std::fs::write(own.join("cgroup.procs"), "0").unwrap();
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP).unwrap();
        mount_fs("cgroup2", CGROUPS);
        Self { machine, own }
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        // A cgroup with this process in it can't be removed.
        std::fs::write(self.machine.join("cgroup.procs"), "0").unwrap();
        std::fs::write(self.own.join("cgroup.kill"), "1").unwrap();
        for _ in 0..500 {
            nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG)).ok();
            remove_groups(&self.own);
            if !self.own.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("{} does not go away", self.own.display());
    }
}

fn remove_groups(group: &Path) {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    std::fs::remove_dir(group).ok();
}

fn mount_fs(filesystem: &str, target: &str) {
    mount(Some(filesystem), target, Some(filesystem), MsFlags::empty(), None::<&str>).unwrap();
}

pub fn context() -> Context {
    ttrpc::context::with_duration(Duration::from_secs(30))
}

pub fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> ttrpc::Code {
    match result.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => status.code(),
        other => panic!("not a status: {other}"),
    }
}

/// An OCI process that runs a shell command.
pub fn process(command: &str, terminal: bool) -> Value {
    json!({
        "args": ["sh", "-c", command],
        "cwd": "/",
        "env": ["PATH=/usr/bin:/bin:/usr/sbin:/sbin"],
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0}
    })
}

pub struct Guest {
    pub agent: agent_ttrpc::AgentClient,
}

impl Guest {
    async fn new(crun: &Path) -> Self {
        let mut paths = Paths::new(crun, Path::new(RUN), Path::new(CGROUPS), Path::new("/sys"));
        paths.agent = env!("CARGO_BIN_EXE_bulkhead-agent").into();
        let share = Share::already_mounted(PciBus::new(Path::new("/sys")));
        let agent = Arc::new(Agent::with_share(paths, Reaper::spawn().unwrap(), share).unwrap());
        let service = Arc::new(Service::new(Arc::clone(&agent)));
        let mut server = ttrpc::r#async::Server::new()
            .bind("unix:///run/calls.sock")
            .unwrap()
            .register_service(agent_ttrpc::create_agent(service));
        server.start().await.unwrap();
        let listener = UnixListener::bind("/run/streams.sock").unwrap();
        tokio::spawn(async move {
            // The server lives as long as somebody listens.
            let _server = server;
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(streams::serve(Arc::clone(&agent), stream));
            }
        });
        let client = ttrpc::r#async::Client::connect("unix:///run/calls.sock").await.unwrap();
        let agent = agent_ttrpc::AgentClient::new(client);
        let early =
            agent.create_container(context(), &CreateContainerRequest::default()).await.unwrap_err().to_string();
        assert!(early.contains("guest is not configured"), "{early}");
        agent.configure(context(), &ConfigureRequest::default()).await.unwrap();
        Self { agent }
    }

    pub fn spec(&self, command: &str) -> Value {
        let namespaces = ["pid", "mount", "ipc", "uts", "cgroup"].map(|kind| json!({"type": kind}));
        json!({
            "ociVersion": "1.0.2",
            "process": process(command, false),
            "root": {"path": "rootfs", "readonly": false},
            "hostname": "inside",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}
            ],
            "linux": {"namespaces": namespaces}
        })
    }

    pub async fn create(&self, id: &str, command: &str) -> ttrpc::Result<()> {
        self.create_with(id, &self.spec(command)).await
    }

    pub async fn create_with(&self, id: &str, spec: &Value) -> ttrpc::Result<()> {
        let rootfs = create_container_request::Rootfs::SharedPath("machine/rootfs".into());
        let request = CreateContainerRequest {
            container_id: id.into(),
            spec: spec.to_string().into_bytes(),
            streams: all_streams(),
            rootfs: Some(rootfs),
            ..Default::default()
        };
        self.agent.create_container(context(), &request).await.map(drop)
    }

    /// A container that runs `command` with the process ids of others.
    pub async fn join(&self, id: &str, command: &str, pids: Pid_namespace) -> ttrpc::Result<u32> {
        let rootfs = create_container_request::Rootfs::SharedPath("machine/rootfs".into());
        let request = CreateContainerRequest {
            container_id: id.into(),
            spec: self.spec(command).to_string().into_bytes(),
            rootfs: Some(rootfs),
            pid_namespace: Some(pids),
            ..Default::default()
        };
        self.agent.create_container(context(), &request).await?;
        self.start(id, "").await
    }

    pub async fn add(&self, id: &str, exec: &str, command: &str) -> ttrpc::Result<()> {
        self.add_process(id, exec, process(command, false)).await
    }

    pub async fn add_process(&self, id: &str, exec: &str, process: Value) -> ttrpc::Result<()> {
        let request = CreateProcessRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            process: process.to_string().into_bytes(),
            streams: all_streams(),
            ..Default::default()
        };
        self.agent.create_process(context(), &request).await.map(drop)
    }

    pub async fn start(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        self.agent.start(context(), &request(id, exec)).await.map(|response| response.pid)
    }

    pub async fn wait(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        self.agent.wait(context(), &request(id, exec)).await.map(|response| response.exit_status)
    }

    pub fn wait_in_background(&self, id: &str, exec: &str) -> JoinResult {
        let (agent, request) = (self.agent.clone(), request(id, exec));
        JoinResult(tokio::spawn(
            async move { agent.wait(context(), &request).await.map(|response| response.exit_status) },
        ))
    }

    pub async fn kill(&self, id: &str, signal: i32) -> ttrpc::Result<()> {
        let signal = signal.unsigned_abs();
        let request = SignalRequest { container_id: id.into(), signal, ..Default::default() };
        self.agent.signal(context(), &request).await.map(drop)
    }

    pub async fn delete(&self, id: &str, exec: &str) -> ttrpc::Result<()> {
        self.agent.delete(context(), &request(id, exec)).await.map(drop)
    }

    /// A whole life, without streams.
    pub async fn run(&self, id: &str, command: &str) {
        self.create(id, command).await.unwrap();
        self.start(id, "").await.unwrap();
        assert_eq!(self.wait(id, "").await.unwrap(), 0);
        self.delete(id, "").await.unwrap();
    }

    pub async fn stream(&self, id: &str, exec: &str, channel: Channel) -> std::io::Result<Stream> {
        let mut stream = UnixStream::connect("/run/streams.sock").await?;
        let hello = Hello { container_id: id.into(), exec_id: exec.into(), channel };
        stream.write_all(&hello.encode().unwrap()).await?;
        match stream.read_u8().await? {
            ACCEPTED => Ok(Stream(stream)),
            answer => Err(std::io::Error::other(format!("answer {answer}"))),
        }
    }

    /// No bundle, mount, record, cgroup, child or scratch file.
    pub fn assert_nothing_is_left(&self) {
        let listed = |path: &str| -> Vec<String> {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
        };
        assert!(listed("/run/bulkhead/containers").is_empty());
        assert!(listed("/run/bulkhead/crun").is_empty());
        assert!(listed(RUN).iter().all(|name| ["containers", "crun", "share"].contains(&name.as_str())));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains("/run/bulkhead/containers"), "{mounts}");
        let groups = std::fs::read_dir(Path::new(CGROUPS).join("bulkhead")).into_iter().flatten().flatten();
        let groups: Vec<_> = groups.filter(|entry| entry.file_type().unwrap().is_dir()).collect();
        assert!(groups.is_empty(), "{groups:?}");
        let children = std::fs::read_to_string("/proc/self/task/1/children").unwrap_or_default();
        assert_eq!(children.trim(), "");
    }

    pub fn open_descriptors(&self) -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }
}

pub struct JoinResult(JoinHandle<ttrpc::Result<u32>>);

impl JoinResult {
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

impl Future for JoinResult {
    type Output = ttrpc::Result<u32>;

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        std::pin::Pin::new(&mut self.0).poll(cx).map(|joined| joined.unwrap())
    }
}

/// The shim's end of one channel.
pub struct Stream(UnixStream);

impl Stream {
    pub async fn write(&mut self, payload: &[u8]) {
        self.0.write_all(&Frame::Data(payload.len()).encode()).await.unwrap();
        self.0.write_all(payload).await.unwrap();
    }

    pub async fn end(&mut self) {
        self.0.write_all(&Frame::End.encode()).await.unwrap();
    }

    /// One frame's payload; none at the end, in-band or not.
    pub async fn read_frame(&mut self) -> Option<Vec<u8>> {
        let mut header = [0; HEADER];
        self.0.read_exact(&mut header).await.ok()?;
        let Frame::Data(length) = Frame::decode(header).unwrap() else { return None };
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).await.ok()?;
        Some(payload)
    }

    pub async fn read_to_end(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(payload) = self.read_frame().await {
            all.extend(payload);
        }
        all
    }
}

fn request(id: &str, exec: &str) -> ProcessRequest {
    ProcessRequest { container_id: id.into(), exec_id: exec.into(), ..Default::default() }
}

fn all_streams() -> protobuf::MessageField<Streams> {
    protobuf::MessageField::some(Streams { stdin: true, stdout: true, stderr: true, ..Default::default() })
}
