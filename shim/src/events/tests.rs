use super::*;
use containerd_shim_protos::events::task::{TaskExit, TaskStart};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim_async::{Events as EventsService, create_events};
use containerd_shim_protos::types::empty::Empty;
use std::path::Path;
use std::sync::Arc;
use ttrpc::r#async::{Server, TtrpcContext};

/// containerd's end: passes on what it is sent.
struct Sink(mpsc::UnboundedSender<Envelope>);

#[async_trait::async_trait]
impl EventsService for Sink {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        self.0.send(request.envelope.unwrap_or_default()).unwrap();
        Ok(Empty::new())
    }
}

async fn containerd(path: &Path, sink: &mpsc::UnboundedSender<Envelope>) -> Server {
    let _ = std::fs::remove_file(path);
    let services = create_events(Arc::new(Sink(sink.clone())));
    let mut server = Server::new().bind(&format!("unix://{}", path.display())).unwrap().register_service(services);
    server.start().await.unwrap();
    server
}

fn exit(id: u32) -> TaskExit {
    TaskExit { container_id: id.to_string(), ..Default::default() }
}

#[tokio::test]
async fn events_arrive_in_order_across_a_restart_of_containerd() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ttrpc");
    let (sink, mut taken) = mpsc::unbounded_channel();
    let events = Events::to_containerd("default".parse().unwrap(), path.to_str().unwrap());
    // Nobody listens yet.
    events.publish("/tasks/exit", &exit(0));
    let mut server = containerd(&path, &sink).await;
    assert_eq!(taken.recv().await.unwrap().namespace, "default");

    server.shutdown().await.unwrap();
    (1..=20).for_each(|number| events.publish("/tasks/exit", &exit(number)));
    let _server = containerd(&path, &sink).await;
    events.flush(Duration::from_secs(20)).await;
    for number in 1..=20 {
        let envelope = taken.recv().await.unwrap();
        let event = TaskExit::parse_from_bytes(&envelope.event.value).unwrap();
        assert_eq!(event.container_id, number.to_string());
    }
}

#[tokio::test]
async fn events_carry_containerds_type_names() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ttrpc");
    let (sink, mut taken) = mpsc::unbounded_channel();
    let _server = containerd(&path, &sink).await;
    let events = Events::to_containerd("default".parse().unwrap(), path.to_str().unwrap());
    events.publish("/tasks/start", &TaskStart::new());
    let envelope = taken.recv().await.unwrap();
    assert_eq!(
        (envelope.topic.as_str(), envelope.event.type_url.as_str()),
        ("/tasks/start", "containerd.events.TaskStart")
    );
}

#[tokio::test]
async fn an_absent_containerd_never_blocks_the_publisher() {
    let events = Events::to_containerd("default".parse().unwrap(), "/nonexistent/ttrpc");
    (0..2 * CAPACITY).for_each(|_| events.publish("/tasks/exit", &exit(0)));
    events.flush(Duration::from_millis(10)).await;
}
