//! The agent's calls, each with a deadline, and its errors made safe to show.

mod responses;

use agent_protocol::agent::{
    AddMemoryRequest, AdjustClockRequest, AdjustClockResponse, ConfigureNetworkRequest, ConfigureRequest,
    ConfigureResponse, ContainerRequest, CreateContainerRequest, CreateContainerResponse, CreateProcessRequest, Empty,
    Event, ListProcessesResponse, PrepareVolumeRequest, ProcessRequest, PutFilesRequest, ReleaseDeviceRequest,
    ResizeTerminalRequest, SignalRequest, StartResponse, StatsResponse, TakeFileRequest, TakeFileResponse,
    UpdateRequest, VolumeRequest, WaitResponse, prepare_volume_request,
};
use agent_protocol::agent_ttrpc::AgentClient;
use responses::Responses;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;
use ttrpc::Code;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::{self, Context};

/// For calls that the agent answers from its own state or after a few system calls.
const DEFAULT: Duration = Duration::from_secs(30);

/// For calls in which the agent runs programs of a container. Longer than the agent's own limits together: 10 s for a disk,
/// 10 s for the share, 60 s for crun and 20 s for crun to take back what failed.
const LONG: Duration = Duration::from_secs(110);

/// For the guest to bring to a device what was written to a volume on it.
pub(super) const WRITE_BACK: Duration = Duration::from_secs(300);

/// ttrpc's own limits come after ours: the client tells its end as a text, not as a code.
const MARGIN: Duration = Duration::from_secs(1);

/// Longest text of an agent's error that is passed on, in characters.
const MAX_TEXT: usize = 1024;

/// Why an agent's call failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AgentError {
    /// The agent answered with an error. The text came out of the guest; it is bounded and has no control characters.
    #[error("{text}")]
    Refused { code: Code, text: String },
    #[error("the guest did not answer {call} within {} s", limit.as_secs_f64())]
    Deadline { call: &'static str, limit: Duration },
    #[error("the connection to the guest broke in {call}")]
    Broken { call: &'static str },
}

/// Client of the agent. Clones share one connection.
#[derive(Clone)]
pub struct Agent {
    client: AgentClient,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Agent").finish_non_exhaustive()
    }
}

macro_rules! calls {
    ($($(#[$doc:meta])* $call:ident($request:ty) -> $response:ty, $limit:expr;)*) => {
        impl Agent {
            $($(#[$doc])* pub async fn $call(&self, request: &$request) -> Result<$response, AgentError> {
                let limit: Option<Duration> = $limit;
                within(stringify!($call), limit, self.client.$call(context_for(limit), request)).await
            })*
        }
    };
}

calls! {
    configure(ConfigureRequest) -> ConfigureResponse, Some(DEFAULT);
    configure_network(ConfigureNetworkRequest) -> Empty, Some(DEFAULT);
    create_container(CreateContainerRequest) -> CreateContainerResponse, Some(LONG);
    create_process(CreateProcessRequest) -> Empty, Some(LONG);
    start(ProcessRequest) -> StartResponse, Some(LONG);
    /// Has no deadline: ends with the process or with the microVM.
    wait(ProcessRequest) -> WaitResponse, None;
    /// Bounded well below what containerd waits for: a guest that does not answer is killed instead.
    signal(SignalRequest) -> Empty, Some(Duration::from_secs(5));
    resize_terminal(ResizeTerminalRequest) -> Empty, Some(Duration::from_secs(10));
    delete(ProcessRequest) -> Empty, Some(Duration::from_secs(10));
    pause(ContainerRequest) -> Empty, Some(DEFAULT);
    resume(ContainerRequest) -> Empty, Some(DEFAULT);
    list_processes(ContainerRequest) -> ListProcessesResponse, Some(Duration::from_secs(10));
    /// containerd asks one container after the other: a guest that does not answer holds up all pods of the node.
    stats(ContainerRequest) -> StatsResponse, Some(Duration::from_secs(3));
    update(UpdateRequest) -> Empty, Some(DEFAULT);
    prepare_volume(PrepareVolumeRequest) -> Empty, Some(DEFAULT);
    put_files(PutFilesRequest) -> Empty, Some(DEFAULT);
    take_file(TakeFileRequest) -> TakeFileResponse, Some(Duration::from_secs(2));
    release_volume(VolumeRequest) -> Empty, Some(DEFAULT);
    /// Waits until nothing is written to it any more.
    release_device(ReleaseDeviceRequest) -> Empty, Some(WRITE_BACK);
    adjust_clock(AdjustClockRequest) -> AdjustClockResponse, Some(Duration::from_secs(10));
    /// Waits for what the guest's kernel has to do for it, 10 s at most.
    add_memory(AddMemoryRequest) -> Empty, Some(DEFAULT);
    /// Has no deadline: ends with an event or with the microVM.
    next_event(Empty) -> Event, None;
    shutdown(Empty) -> Empty, Some(Duration::from_secs(2));
}

fn volume_request(id: &str, kind: prepare_volume_request::Kind) -> PrepareVolumeRequest {
    PrepareVolumeRequest { volume: id.to_owned(), kind: Some(kind), ..PrepareVolumeRequest::default() }
}

impl Agent {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { client: AgentClient::new(Client::new(Socket::new(Responses::new(stream)))) }
    }

    /// Makes a volume of the guest. One that is there stays as it is.
    pub(super) async fn make_volume(&self, id: &str, kind: prepare_volume_request::Kind) -> Result<(), AgentError> {
        self.prepare_volume(&volume_request(id, kind)).await.map(drop)
    }

    /// The same for a file system on a device, whose journal may have to be replayed first.
    pub(super) async fn mount_volume(&self, id: &str, kind: prepare_volume_request::Kind) -> Result<(), AgentError> {
        let (request, limit) = (volume_request(id, kind), Some(LONG));
        within("prepare_volume", limit, self.client.prepare_volume(context_for(limit), &request)).await.map(drop)
    }

    /// Has the guest unmount a volume on a device, once all that was written to it is there.
    pub(super) async fn unmount_volume(&self, id: String) -> Result<(), AgentError> {
        let request = VolumeRequest { volume: id, ..VolumeRequest::default() };
        let limit = Some(WRITE_BACK);
        within("release_volume", limit, self.client.release_volume(context_for(limit), &request)).await.map(drop)
    }

    /// Has the guest forget a volume, best effort: it goes with the microVM at the latest.
    pub(super) async fn forget_volume(&self, id: &str) {
        let request = VolumeRequest { volume: id.to_owned(), ..VolumeRequest::default() };
        if let Err(error) = self.release_volume(&request).await {
            tracing::warn!(volume = id, %error, "the guest did not release a volume");
        }
    }

    /// The same for several. Waits for nobody.
    pub(super) fn forget_volumes(&self, ids: Vec<String>) {
        let agent = self.clone();
        tokio::spawn(async move {
            for id in ids {
                agent.forget_volume(&id).await;
            }
        });
    }
}

fn context_for(limit: Option<Duration>) -> Context {
    // A zero timeout is ttrpc's "none".
    context::with_duration(limit.map_or(Duration::ZERO, |limit| limit + MARGIN))
}

async fn within<T>(
    call: &'static str,
    limit: Option<Duration>,
    answer: impl Future<Output = ttrpc::Result<T>>,
) -> Result<T, AgentError> {
    let answer = match limit {
        Some(limit) => timeout(limit, answer).await.map_err(|_| AgentError::Deadline { call, limit })?,
        None => answer.await,
    };
    answer.map_err(|error| translate(call, error))
}

fn translate(call: &'static str, error: ttrpc::Error) -> AgentError {
    match error {
        ttrpc::Error::RpcStatus(status) => {
            let code = status.code.enum_value().unwrap_or(Code::UNKNOWN);
            AgentError::Refused { code, text: printable(&status.message) }
        }
        _ => AgentError::Broken { call },
    }
}

/// The guest's text, fit for a log line or an error.
pub(crate) fn printable(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_says_nothing_ends_in_the_deadline() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let agent = Agent::new(ours);
        let limit = Duration::from_secs(5);
        let error = agent.signal(&SignalRequest::default()).await.unwrap_err();
        assert_eq!(error, AgentError::Deadline { call: "signal", limit });
        assert_eq!(error.to_string(), "the guest did not answer signal within 5 s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_says_nothing_holds_up_metrics_for_seconds_only() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let error = Agent::new(ours).stats(&ContainerRequest::default()).await.unwrap_err();
        assert_eq!(error, AgentError::Deadline { call: "stats", limit: Duration::from_secs(3) });
    }

    #[tokio::test]
    async fn a_guest_that_is_gone_breaks_the_call() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let error = Agent::new(ours).signal(&SignalRequest::default()).await.unwrap_err();
        assert_eq!(error, AgentError::Broken { call: "signal" });
    }

    #[tokio::test]
    async fn a_guest_that_answers_with_data_breaks_the_connection() {
        use ttrpc::proto::{MESSAGE_TYPE_DATA, MessageHeader};
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let agent = Agent::new(ours);
        let answering = tokio::spawn(async move {
            let data = MessageHeader { length: 0, stream_id: 1, type_: MESSAGE_TYPE_DATA, flags: 0 };
            theirs.write_all(&Vec::from(data)).await.unwrap();
            let mut asked = Vec::new();
            theirs.read_to_end(&mut asked).await.map(|_| ())
        });
        for call in ["the one that it answers", "the next"] {
            let error = agent.next_event(&Empty::default()).await.unwrap_err();
            assert_eq!(error, AgentError::Broken { call: "next_event" }, "{call}");
        }
        drop(agent);
        // The connection is closed, not only left.
        timeout(Duration::from_secs(5), answering).await.unwrap().unwrap().unwrap();
    }

    #[test]
    fn what_the_agent_says_is_told_without_control_characters() {
        let refused = |code, text: &str| AgentError::Refused { code, text: text.to_owned() };
        let status = ttrpc::Error::RpcStatus(ttrpc::get_status(Code::DEADLINE_EXCEEDED, "crun\x1b took long"));
        assert_eq!(translate("start", status), refused(Code::DEADLINE_EXCEEDED, "crun  took long"));
        let mut status = ttrpc::get_status(Code::OK, "x".repeat(2 * MAX_TEXT));
        status.code = containerd_shim_protos::protobuf::EnumOrUnknown::from_i32(77);
        assert_eq!(translate("start", ttrpc::Error::RpcStatus(status)), refused(Code::UNKNOWN, &"x".repeat(MAX_TEXT)));
        assert_eq!(translate("start", ttrpc::Error::RemoteClosed), AgentError::Broken { call: "start" });
    }
}
