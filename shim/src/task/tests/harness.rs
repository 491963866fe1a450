//! A pod without a microVM: the task service as containerd reaches it, and a guest that does what a test says.

use super::super::vm::{Boot, MicroVm};
use super::super::{Pod, services};
use crate::events::Events;
use crate::identifier::Identifier;
use crate::sandbox::{Agent, Attached, ContainerPlan, SandboxError, SandboxSpec};
use agent_protocol::agent::{self as guest, create_container_request::Rootfs};
use agent_protocol::agent_ttrpc::{Agent as AgentService, create_agent};
use agent_protocol::stream::{Frame, HEADER, Hello};
use async_trait::async_trait;
use bulkhead_config::Config;
use containerd_shim_protos::api::{self, ForwardRequest};
use containerd_shim_protos::shim_async::{Client, Events as EventsService, TaskClient, create_events};
use containerd_shim_protos::types::empty::Empty;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use ttrpc::r#async::{Server, TtrpcContext};
use ttrpc::context::{self, Context};

pub fn soon() -> Context {
    context::with_duration(Duration::from_secs(20))
}

/// The guest: agent, streams, and what was done to the microVM.
#[derive(Debug)]
pub struct Guest {
    /// Exit status of each process, by `container/exec`.
    exits: Mutex<HashMap<String, watch::Sender<Option<u32>>>>,
    /// Our ends of streams, by `container/exec/channel`.
    pub streams: Mutex<HashMap<String, UnixStream>>,
    /// What was asked, in order.
    pub calls: Mutex<Vec<String>>,
    pub attach_fails: AtomicBool,
    pub attach_hangs: AtomicBool,
    pub detach_hangs: AtomicBool,
    /// As the agent does it: the process has ended then.
    pub start_fails: AtomicBool,
    /// Streams open when their process has been started.
    pub streams_follow_start: AtomicBool,
    pub streams_fail: AtomicBool,
    pub create_fails: AtomicBool,
    /// Signals are acknowledged and not delivered.
    pub ignores_signals: AtomicBool,
    /// Signals end with the deadline that the guest claims to have had.
    pub signals_time_out: AtomicBool,
    pub oom: tokio::sync::Notify,
    /// Boot waits for this.
    pub may_boot: tokio::sync::Semaphore,
    pub destroyed: AtomicBool,
    stopped: watch::Sender<Option<String>>,
}

impl Guest {
    fn new() -> Self {
        Self {
            exits: Mutex::default(),
            streams: Mutex::default(),
            calls: Mutex::default(),
            attach_fails: AtomicBool::default(),
            attach_hangs: AtomicBool::default(),
            detach_hangs: AtomicBool::default(),
            start_fails: AtomicBool::default(),
            streams_follow_start: AtomicBool::default(),
            streams_fail: AtomicBool::default(),
            create_fails: AtomicBool::default(),
            ignores_signals: AtomicBool::default(),
            signals_time_out: AtomicBool::default(),
            oom: tokio::sync::Notify::new(),
            may_boot: tokio::sync::Semaphore::new(1),
            destroyed: AtomicBool::default(),
            stopped: watch::Sender::default(),
        }
    }

    fn exit_of(&self, process: &str) -> watch::Sender<Option<u32>> {
        self.exits.lock().unwrap().entry(process.to_owned()).or_default().clone()
    }

    pub fn end(&self, process: &str, status: u32) {
        self.exit_of(process).send_replace(Some(status));
    }

    pub fn lose_vm(&self) {
        self.stopped.send_replace(Some("killed".to_owned()));
    }

    pub fn is_lost(&self) -> bool {
        self.stopped.borrow().is_some()
    }

    pub fn called(&self, call: &str) -> bool {
        self.calls.lock().unwrap().iter().any(|called| called == call)
    }

    fn note(&self, call: &str, request: &guest::ProcessRequest) -> String {
        let process = format!("{}/{}", request.container_id, request.exec_id);
        self.calls.lock().unwrap().push(format!("{call} {process}"));
        process
    }
}

struct FakeAgent(Arc<Guest>);

#[async_trait]
impl AgentService for FakeAgent {
    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: guest::CreateContainerRequest,
    ) -> ttrpc::Result<guest::CreateContainerResponse> {
        if self.0.create_fails.load(Ordering::Relaxed) {
            let status = ttrpc::get_status(ttrpc::Code::INVALID_ARGUMENT, "executable file `foo` not found");
            return Err(ttrpc::Error::RpcStatus(status));
        }
        self.0.calls.lock().unwrap().push(format!("create {}", request.container_id));
        Ok(guest::CreateContainerResponse::new())
    }

    async fn create_process(&self, _: &TtrpcContext, _: guest::CreateProcessRequest) -> ttrpc::Result<guest::Empty> {
        Ok(guest::Empty::new())
    }

    async fn start(&self, _: &TtrpcContext, request: guest::ProcessRequest) -> ttrpc::Result<guest::StartResponse> {
        let process = self.0.note("start", &request);
        if self.0.start_fails.load(Ordering::Relaxed) {
            self.0.end(&process, 255);
            let status = ttrpc::get_status(ttrpc::Code::INVALID_ARGUMENT, "executable file `foo` not found");
            return Err(ttrpc::Error::RpcStatus(status));
        }
        Ok(guest::StartResponse::new())
    }

    async fn wait(&self, _: &TtrpcContext, request: guest::ProcessRequest) -> ttrpc::Result<guest::WaitResponse> {
        let process = format!("{}/{}", request.container_id, request.exec_id);
        let mut exit = self.0.exit_of(&process).subscribe();
        let exit_status = exit.wait_for(Option::is_some).await.unwrap().unwrap();
        Ok(guest::WaitResponse { exit_status, ..Default::default() })
    }

    async fn signal(&self, _: &TtrpcContext, request: guest::SignalRequest) -> ttrpc::Result<guest::Empty> {
        self.0.calls.lock().unwrap().push(format!("kill {}/{}", request.container_id, request.exec_id));
        if self.0.signals_time_out.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if !self.0.ignores_signals.load(Ordering::Relaxed) {
            self.0.end(&format!("{}/{}", request.container_id, request.exec_id), 128 + request.signal);
        }
        Ok(guest::Empty::new())
    }

    async fn delete(&self, _: &TtrpcContext, request: guest::ProcessRequest) -> ttrpc::Result<guest::Empty> {
        let process = self.0.note("delete", &request);
        self.0.exits.lock().unwrap().remove(&process);
        Ok(guest::Empty::new())
    }

    async fn pause(&self, _: &TtrpcContext, _: guest::ContainerRequest) -> ttrpc::Result<guest::Empty> {
        Ok(guest::Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, _: guest::ContainerRequest) -> ttrpc::Result<guest::Empty> {
        Ok(guest::Empty::new())
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        _: guest::ContainerRequest,
    ) -> ttrpc::Result<guest::ListProcessesResponse> {
        Ok(guest::ListProcessesResponse { pids: vec![1, 17, 18], ..Default::default() })
    }

    async fn stats(&self, _: &TtrpcContext, _: guest::ContainerRequest) -> ttrpc::Result<guest::StatsResponse> {
        Ok(guest::StatsResponse { memory_current: 4096, ..Default::default() })
    }

    async fn update(&self, _: &TtrpcContext, request: guest::UpdateRequest) -> ttrpc::Result<guest::Empty> {
        let resources = String::from_utf8(request.resources).unwrap();
        self.0.calls.lock().unwrap().push(format!("update {} {resources}", request.container_id));
        Ok(guest::Empty::new())
    }

    async fn next_event(&self, _: &TtrpcContext, _: guest::Empty) -> ttrpc::Result<guest::Event> {
        self.0.oom.notified().await;
        let event = guest::OutOfMemory { container_id: "web".into(), ..Default::default() };
        Ok(guest::Event { kind: Some(guest::event::Kind::OutOfMemory(event)), ..Default::default() })
    }
}

#[derive(Debug)]
struct FakeVm {
    guest: Arc<Guest>,
    agent: Agent,
}

#[async_trait]
impl MicroVm for FakeVm {
    fn agent(&self) -> &Agent {
        &self.agent
    }

    fn vmm_pid(&self) -> u32 {
        4242
    }

    fn memory_mib(&self) -> u32 {
        512
    }

    fn set_oom_score(&self, score: u16) {
        self.guest.calls.lock().unwrap().push(format!("score {score}"));
    }

    fn stopped(&self) -> watch::Receiver<Option<String>> {
        self.guest.stopped.subscribe()
    }

    async fn open_stream(&self, hello: &Hello) -> Result<UnixStream, SandboxError> {
        let start = format!("start {}/{}", hello.container_id, hello.exec_id);
        while self.guest.streams_follow_start.load(Ordering::Relaxed) && !self.guest.called(&start) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if self.guest.streams_fail.load(Ordering::Relaxed) {
            return Err(SandboxError::Gone("test".to_owned()));
        }
        let (ours, guests) = UnixStream::pair().unwrap();
        let name = format!("{}/{}/{:?}", hello.container_id, hello.exec_id, hello.channel);
        self.guest.streams.lock().unwrap().insert(name, guests);
        Ok(ours)
    }

    async fn attach(&self, _: &ContainerPlan) -> Result<Attached, SandboxError> {
        self.guest.calls.lock().unwrap().push("attach".to_owned());
        passes(&self.guest.attach_hangs).await;
        if self.guest.attach_fails.load(Ordering::Relaxed) {
            return Err(SandboxError::Gone("test".to_owned()));
        }
        Ok(Attached {
            rootfs: Rootfs::SharedPath("rootfs".into()),
            spec: b"{}".to_vec(),
            pids: None,
            devices: Vec::new(),
        })
    }

    async fn take_back(&self, container: &Identifier) {
        self.guest.calls.lock().unwrap().push(format!("take back {container}"));
    }

    fn carry(&self, connection: &guest::SocketConnection) {
        self.guest.calls.lock().unwrap().push(format!("carry {}", connection.volume));
    }

    fn grow(&self) {
        self.guest.calls.lock().unwrap().push("grow".to_owned());
    }

    async fn detach(&self, container: &Identifier) -> Result<(), SandboxError> {
        self.guest.calls.lock().unwrap().push(format!("detach {container}"));
        passes(&self.guest.detach_hangs).await;
        Ok(())
    }

    async fn write_back(&self, container: &Identifier) -> Result<(), SandboxError> {
        self.guest.calls.lock().unwrap().push(format!("write back {container}"));
        Ok(())
    }

    fn kill(&self, _: &str) {
        self.guest.lose_vm();
    }

    async fn destroy(&self) {
        self.guest.destroyed.store(true, Ordering::Relaxed);
        self.guest.lose_vm();
    }
}

/// Waits until nothing hangs.
async fn passes(hangs: &AtomicBool) {
    while hangs.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[derive(Debug)]
struct FakeBoot {
    guest: Arc<Guest>,
    agent: PathBuf,
}

#[async_trait]
impl Boot for FakeBoot {
    async fn boot(&self, _: SandboxSpec, _: &Config) -> Result<Arc<dyn MicroVm>, SandboxError> {
        self.guest.may_boot.acquire().await.unwrap().forget();
        let agent = Agent::new(UnixStream::connect(&self.agent).await.unwrap());
        Ok(Arc::new(FakeVm { guest: self.guest.clone(), agent }))
    }
}

/// containerd's end of the events.
struct Sink(mpsc::UnboundedSender<String>);

#[async_trait]
impl EventsService for Sink {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        use containerd_shim_protos::events::task::TaskExit;
        use containerd_shim_protos::protobuf::Message;
        let envelope = request.envelope.unwrap_or_default();
        let mut text = envelope.topic.trim_start_matches("/tasks/").to_owned();
        if text == "exit" {
            let exit = TaskExit::parse_from_bytes(&envelope.event.value).unwrap();
            text = format!("exit {} {}", exit.id, exit.exit_status);
        }
        self.0.send(text).unwrap();
        Ok(Empty::new())
    }
}

/// A pod with the id `web`, its guest, and a client of its task service.
pub struct Bench {
    pub client: TaskClient,
    pub raw: Client,
    pub guest: Arc<Guest>,
    pub pod: Arc<Pod>,
    events: tokio::sync::Mutex<mpsc::UnboundedReceiver<String>>,
    pub directory: tempfile::TempDir,
    _servers: Vec<Server>,
}

impl Bench {
    pub async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let guest = Arc::new(Guest::new());
        let (sink, events) = mpsc::unbounded_channel();
        let mut servers = vec![
            serve(&path("agent"), create_agent(Arc::new(FakeAgent(guest.clone())))).await,
            serve(&path("events"), create_events(Arc::new(Sink(sink)))).await,
        ];
        let namespace: Identifier = "default".parse().unwrap();
        let queue = Events::to_containerd(namespace.clone(), path("events").to_str().unwrap());
        let boot = Box::new(FakeBoot { guest: guest.clone(), agent: path("agent") });
        let pod = Arc::new(Pod::new(namespace, "web".parse().unwrap(), queue, boot));
        servers.push(serve(&path("task"), services(&pod)).await);
        let raw = Client::connect(&format!("unix://{}", path("task").display())).await.unwrap();
        let client = TaskClient::new(raw.clone());
        Self { client, raw, guest, pod, events: events.into(), directory, _servers: servers }
    }

    /// The next `count` events.
    pub async fn events(&self, count: usize) -> Vec<String> {
        let mut events = self.events.lock().await;
        let mut taken = Vec::new();
        while taken.len() < count {
            let next = tokio::time::timeout(Duration::from_secs(20), events.recv()).await;
            taken.push(next.unwrap_or_else(|_| panic!("only {taken:?} came")).unwrap());
        }
        taken
    }

    pub fn no_event(&self) -> bool {
        self.events.try_lock().unwrap().try_recv().is_err()
    }

    /// A bundle whose annotations and command are given.
    pub fn request(&self, id: &str, annotations: &str) -> api::CreateTaskRequest {
        let bundle = self.directory.path().join(id);
        std::fs::create_dir_all(&bundle).unwrap();
        let spec = format!(
            r#"{{"ociVersion":"1.1.0","process":{{"args":["sh"]}},"root":{{"path":"rootfs"}},"annotations":{annotations},
            "linux":{{"namespaces":[{{"type":"pid"}},{{"type":"ipc"}},{{"type":"mount"}},{{"type":"network"}}]}}}}"#
        );
        std::fs::write(bundle.join("config.json"), spec).unwrap();
        api::CreateTaskRequest { id: id.into(), bundle: bundle.display().to_string(), ..Default::default() }
    }

    pub async fn create(&self, id: &str, annotations: &str) -> ttrpc::Result<api::CreateTaskResponse> {
        self.client.create(soon(), &self.request(id, annotations)).await
    }

    pub async fn start(&self, id: &str, exec_id: &str) -> ttrpc::Result<api::StartResponse> {
        self.client
            .start(soon(), &api::StartRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() })
            .await
    }

    pub async fn run(&self, id: &str) {
        self.create(id, "{}").await.unwrap();
        self.start(id, "").await.unwrap();
        assert_eq!(self.events(2).await, ["create", "start"]);
    }

    pub async fn exec(&self, id: &str, exec_id: &str) -> ttrpc::Result<Empty> {
        self.exec_with_stdin(id, exec_id, "").await
    }

    pub async fn exec_with_stdin(&self, id: &str, exec_id: &str, stdin: &str) -> ttrpc::Result<Empty> {
        let spec = containerd_shim_protos::protobuf::well_known_types::any::Any {
            value: br#"{"args":["true"],"cwd":"/"}"#.to_vec(),
            ..Default::default()
        };
        let request = api::ExecProcessRequest {
            id: id.into(),
            exec_id: exec_id.into(),
            stdin: stdin.into(),
            spec: Some(spec).into(),
            ..Default::default()
        };
        self.client.exec(soon(), &request).await
    }

    pub async fn wait(&self, id: &str, exec_id: &str) -> u32 {
        let request = api::WaitRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        self.client.wait(soon(), &request).await.unwrap().exit_status
    }

    pub async fn kill(&self, id: &str, exec_id: &str, signal: u32) -> ttrpc::Result<Empty> {
        let request = api::KillRequest { id: id.into(), exec_id: exec_id.into(), signal, ..Default::default() };
        self.client.kill(soon(), &request).await
    }

    pub async fn delete(&self, id: &str, exec_id: &str) -> ttrpc::Result<api::DeleteResponse> {
        let request = api::DeleteRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        self.client.delete(soon(), &request).await
    }

    pub async fn state(&self, id: &str) -> ttrpc::Result<api::StateResponse> {
        self.client.state(soon(), &api::StateRequest { id: id.into(), ..Default::default() }).await
    }

    pub async fn shut_down(&self) {
        self.client.shutdown(soon(), &api::ShutdownRequest::new()).await.unwrap();
    }

    pub async fn is_over(&self) -> bool {
        tokio::time::timeout(Duration::from_millis(50), self.pod.over()).await.is_ok()
    }

    pub async fn update(&self, id: &str, resources: &str) -> ttrpc::Result<Empty> {
        let resources = containerd_shim_protos::protobuf::well_known_types::any::Any {
            value: resources.as_bytes().to_vec(),
            ..Default::default()
        };
        let request = api::UpdateTaskRequest { id: id.into(), resources: Some(resources).into(), ..Default::default() };
        self.client.update(soon(), &request).await
    }

    pub async fn close_stdin(&self, id: &str, exec_id: &str) {
        let request = api::CloseIORequest { id: id.into(), exec_id: exec_id.into(), stdin: true, ..Default::default() };
        self.client.close_io(soon(), &request).await.unwrap();
    }

    /// The next frame that the guest gets on a stream.
    pub async fn input(&self, stream: &str) -> Frame {
        let mut guest = self.guest.streams.lock().unwrap().remove(stream).unwrap();
        let mut header = [0; HEADER];
        tokio::time::timeout(Duration::from_secs(20), guest.read_exact(&mut header)).await.unwrap().unwrap();
        Frame::decode(header).unwrap()
    }

    /// A new FIFO.
    pub fn fifo(&self, name: &str) -> String {
        let path = self.directory.path().join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path.display().to_string()
    }

    /// Sends output from the guest, and its end if `end`.
    pub async fn output(&self, stream: &str, bytes: &[u8], end: bool) {
        let mut guest = self.guest.streams.lock().unwrap().remove(stream).unwrap();
        guest.write_all(&Frame::Data(bytes.len()).encode()).await.unwrap();
        guest.write_all(bytes).await.unwrap();
        if end {
            guest.write_all(&Frame::End.encode()).await.unwrap();
        }
        self.guest.streams.lock().unwrap().insert(stream.to_owned(), guest);
    }
}

pub async fn serve(path: &std::path::Path, services: HashMap<String, ttrpc::r#async::Service>) -> Server {
    let mut server = Server::new().bind(&format!("unix://{}", path.display())).unwrap().register_service(services);
    server.start().await.unwrap();
    server
}

/// The code of a call that failed.
pub fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> ttrpc::Code {
    match result.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => status.code(),
        other => panic!("not a status: {other}"),
    }
}
