use super::*;
use crate::sandbox::mount::TreeOptions;
use agent_protocol::agent::{
    Empty, PrepareVolumeRequest, PutFilesRequest, TakeFileRequest, TakeFileResponse, VolumeRequest, file_entry,
};
use agent_protocol::agent_ttrpc::{Agent as AgentService, create_agent};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::net::UnixStream;
use ttrpc::r#async::{Server, TtrpcContext};

type Files = BTreeMap<String, Vec<u8>>;

/// A guest that remembers the files of complete generations.
#[derive(Debug, Default)]
struct Guest {
    drafts: Mutex<HashMap<String, Files>>,
    volumes: Mutex<HashMap<String, Files>>,
    pushes: Mutex<Vec<(String, u64)>>,
    released: Mutex<Vec<String>>,
    hangs: AtomicBool,
}

struct FakeAgent(Arc<Guest>);

#[async_trait]
impl AgentService for FakeAgent {
    async fn prepare_volume(&self, _: &TtrpcContext, request: PrepareVolumeRequest) -> ttrpc::Result<Empty> {
        self.0.volumes.lock().unwrap().entry(request.volume).or_default();
        Ok(Empty::new())
    }

    async fn put_files(&self, _: &TtrpcContext, request: PutFilesRequest) -> ttrpc::Result<Empty> {
        if self.0.hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        let mut drafts = self.0.drafts.lock().unwrap();
        let draft = drafts.entry(request.volume.clone()).or_default();
        for entry in request.entries {
            if let Some(file_entry::What::Content(content)) = entry.what {
                draft.entry(String::from_utf8(entry.path).unwrap()).or_default().extend(content);
            }
        }
        if request.last {
            let files = drafts.remove(&request.volume).unwrap_or_default();
            self.0.pushes.lock().unwrap().push((request.volume.clone(), request.generation));
            self.0.volumes.lock().unwrap().insert(request.volume, files);
        }
        Ok(Empty::new())
    }

    async fn take_file(&self, _: &TtrpcContext, _: TakeFileRequest) -> ttrpc::Result<TakeFileResponse> {
        if self.0.hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        Ok(TakeFileResponse { content: b"so long".to_vec(), ..TakeFileResponse::default() })
    }

    async fn release_volume(&self, _: &TtrpcContext, request: VolumeRequest) -> ttrpc::Result<Empty> {
        self.0.released.lock().unwrap().push(request.volume);
        Ok(Empty::new())
    }
}

/// A pod, its guest, and a directory of the node.
struct Bench {
    node: tempfile::TempDir,
    guest: Arc<Guest>,
    volumes: Volumes,
    _server: Server,
    _stopped: changes::Sender<Option<String>>,
}

impl Bench {
    async fn new(memory_mib: u32) -> Self {
        let node = tempfile::tempdir().unwrap();
        let guest = Arc::new(Guest::default());
        let address = node.path().join("agent");
        let server = Server::new().bind(&format!("unix://{}", address.display())).unwrap();
        let mut server = server.register_service(create_agent(Arc::new(FakeAgent(guest.clone()))));
        server.start().await.unwrap();
        let agent = Agent::new(UnixStream::connect(address).await.unwrap());
        let (stopped, receiver) = changes::channel(None);
        let volumes = Volumes::new(agent, receiver, memory_mib);
        Self { node, guest, volumes, _server: server, _stopped: stopped }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.node.path().canonicalize().unwrap().join(name)
    }

    /// As kubelet writes a version, in place of the one before.
    fn configure(&self, name: &str, version: u32, content: &[u8]) {
        let volume = self.path(name);
        let data = format!("..{version}");
        std::fs::create_dir_all(volume.join(&data)).unwrap();
        std::fs::write(volume.join(&data).join("key"), content).unwrap();
        symlink(&data, volume.join("..data_tmp")).unwrap();
        std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
        std::fs::remove_dir_all(volume.join(format!("..{}", version - 1))).ok();
    }

    async fn place(&self, name: &str, plan: VolumePlan) -> Result<Option<String>, String> {
        self.place_for(&web(), name, plan).await
    }

    async fn place_for(&self, user: &Identifier, name: &str, plan: VolumePlan) -> Result<Option<String>, String> {
        let source = self.path(name);
        let found = Resolved::open(&source).unwrap();
        let key = FileId::of(&std::fs::metadata(&source).unwrap());
        let options = TreeOptions { recursive: true, read_only: true, follows_source: false };
        let mount = HostMount { index: 0, destination: "/d".into(), source, options };
        let placed = self.volumes.place(user, &mount, &found, Looked { plan, key, empty_dir: None }).await;
        placed.map_err(|error| error.to_string())
    }

    fn content(&self, volume: &str) -> Option<String> {
        let volumes = self.guest.volumes.lock().unwrap();
        let content = volumes.get(volume)?.values().next()?;
        Some(String::from_utf8_lossy(content).into_owned())
    }

    async fn eventually(&self, volume: &str, content: &str) {
        for _ in 0..500 {
            if self.content(volume).as_deref() == Some(content) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{volume} holds {:?}, not {content:?}", self.content(volume));
    }
}

fn web() -> Identifier {
    "web".parse().unwrap()
}

#[tokio::test]
async fn a_volume_is_pushed_once_however_many_containers_mount_it() {
    let bench = Bench::new(512).await;
    bench.configure("settings", 1, b"one");
    for _ in 0..2 {
        let place = bench.place("settings", VolumePlan::Pushed).await.unwrap();
        assert_eq!(place.as_deref(), Some("/run/bulkhead/v/v1"));
    }
    assert_eq!(bench.content("v1").as_deref(), Some("one"));
    assert_eq!(*bench.guest.pushes.lock().unwrap(), [("v1".to_owned(), 1)]);
}

#[tokio::test]
async fn updates_are_followed_to_the_last() {
    let bench = Bench::new(512).await;
    bench.configure("settings", 1, b"1");
    bench.place("settings", VolumePlan::Pushed).await.unwrap();
    bench.configure("settings", 2, b"2");
    bench.eventually("v1", "2").await;
    for version in 3..30 {
        bench.configure("settings", version, version.to_string().as_bytes());
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
    bench.eventually("v1", "29").await;
}

#[tokio::test]
async fn a_new_container_finds_what_is_on_the_node_now() {
    let bench = Bench::new(512).await;
    std::fs::write(bench.path("hosts"), "before").unwrap();
    let place = bench.place("hosts", VolumePlan::File).await.unwrap();
    assert_eq!(place.as_deref(), Some("/run/bulkhead/v/v1/file"));
    std::fs::write(bench.path("hosts"), "after").unwrap();
    bench.place("hosts", VolumePlan::File).await.unwrap();
    assert_eq!(bench.content("v1").as_deref(), Some("after"));
}

#[tokio::test]
async fn a_file_goes_with_the_last_container_that_has_it() {
    let bench = Bench::new(512).await;
    let sidecar: Identifier = "sidecar".parse().unwrap();
    bench.configure("settings", 1, b"one");
    bench.place("settings", VolumePlan::Pushed).await.unwrap();
    std::fs::write(bench.path("key"), "old").unwrap();
    bench.place("key", VolumePlan::File).await.unwrap();
    bench.place_for(&sidecar, "key", VolumePlan::File).await.unwrap();
    bench.volumes.detach(&web());
    std::fs::write(bench.path("new"), "new").unwrap();
    std::fs::rename(bench.path("new"), bench.path("key")).unwrap();
    let again: Identifier = "web-again".parse().unwrap();
    let place = bench.place_for(&again, "key", VolumePlan::File).await.unwrap();
    assert_eq!(place.as_deref(), Some("/run/bulkhead/v/v3/file"));
    assert!(bench.guest.released.lock().unwrap().is_empty(), "the sidecar has it");
    bench.volumes.detach(&sidecar);
    bench.volumes.detach(&again);
    while bench.guest.released.lock().unwrap().len() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(*bench.guest.released.lock().unwrap(), ["v2", "v3"]);
}

#[tokio::test]
async fn other_layouts_are_shared() {
    let bench = Bench::new(512).await;
    std::fs::create_dir(bench.path("csi")).unwrap();
    assert_eq!(bench.place("csi", VolumePlan::Pushed).await, Ok(None));
    assert_eq!(bench.place("csi", VolumePlan::Shared).await, Ok(None));
}

#[tokio::test]
async fn what_the_microvm_has_no_room_for_is_refused() {
    let bench = Bench::new(24).await;
    bench.configure("first", 1, &vec![b'x'; 4 << 20]);
    bench.configure("second", 1, &vec![b'x'; 3 << 20]);
    bench.place("first", VolumePlan::Pushed).await.unwrap();
    let words =
        "mount /d: the pod's configuration is larger than 6 MiB, which is the most that is copied into its microVM";
    assert_eq!(bench.place("second", VolumePlan::Pushed).await.unwrap_err(), words);
    // Nothing of it stays, and what fits is still placed.
    assert_eq!(*bench.guest.released.lock().unwrap(), ["v2"]);
    bench.configure("second", 2, b"small");
    bench.place("second", VolumePlan::Pushed).await.unwrap();
}

#[tokio::test]
async fn a_termination_log_comes_back_and_is_forgotten() {
    let bench = Bench::new(512).await;
    std::fs::write(bench.path("log"), "").unwrap();
    bench.place("log", VolumePlan::Returned).await.unwrap();
    bench.volumes.take_back(&web()).await;
    assert_eq!(std::fs::read_to_string(bench.path("log")).unwrap(), "so long");
    bench.volumes.detach(&web());
    while bench.guest.released.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_guest_that_hangs_holds_up_neither_an_end_nor_a_deletion() {
    let bench = Bench::new(512).await;
    std::fs::write(bench.path("log"), "kept").unwrap();
    bench.configure("settings", 1, b"1");
    bench.place("log", VolumePlan::Returned).await.unwrap();
    bench.place("settings", VolumePlan::Pushed).await.unwrap();
    bench.guest.hangs.store(true, Ordering::Relaxed);
    bench.configure("settings", 2, b"2");
    // Time for the update to be under way.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let end = async {
        bench.volumes.take_back(&web()).await;
        bench.volumes.detach(&web());
    };
    tokio::time::timeout(Duration::from_secs(4), end).await.unwrap();
    assert_eq!(std::fs::read_to_string(bench.path("log")).unwrap(), "kept");
}
