//! The agent's calls, each with a deadline, and its errors made safe to show.

use agent_protocol::agent::{
    ConfigureRequest, ConfigureResponse, ContainerRequest, CreateContainerRequest, CreateProcessRequest, Empty, Event,
    ListProcessesResponse, ProcessRequest, ReleaseDeviceRequest, ResizeTerminalRequest, SignalRequest, StartResponse,
    StatsResponse, UpdateRequest, WaitResponse,
};
use agent_protocol::agent_ttrpc::AgentClient;
use std::time::Duration;
use tokio::net::UnixStream;
use ttrpc::Code;
use ttrpc::r#async::Client;
use ttrpc::context::{self, Context};

/// For calls that the agent answers from its own state or after a few system calls.
const DEFAULT: Duration = Duration::from_secs(30);

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
                let answer = self.client.$call(context_for(limit), request).await;
                answer.map_err(|error| translate(stringify!($call), limit, error))
            })*
        }
    };
}

calls! {
    configure(ConfigureRequest) -> ConfigureResponse, Some(DEFAULT);
    create_container(CreateContainerRequest) -> Empty, Some(DEFAULT);
    create_process(CreateProcessRequest) -> Empty, Some(DEFAULT);
    start(ProcessRequest) -> StartResponse, Some(DEFAULT);
    /// Has no deadline: ends with the process or with the microVM.
    wait(ProcessRequest) -> WaitResponse, None;
    /// Bounded well below what containerd waits for: a guest that does not answer is killed instead.
    signal(SignalRequest) -> Empty, Some(Duration::from_secs(5));
    resize_terminal(ResizeTerminalRequest) -> Empty, Some(Duration::from_secs(10));
    delete(ProcessRequest) -> Empty, Some(Duration::from_secs(10));
    pause(ContainerRequest) -> Empty, Some(DEFAULT);
    resume(ContainerRequest) -> Empty, Some(DEFAULT);
    list_processes(ContainerRequest) -> ListProcessesResponse, Some(Duration::from_secs(10));
    stats(ContainerRequest) -> StatsResponse, Some(Duration::from_secs(10));
    update(UpdateRequest) -> Empty, Some(DEFAULT);
    release_device(ReleaseDeviceRequest) -> Empty, Some(Duration::from_secs(5));
    /// Has no deadline: ends with an event or with the microVM.
    next_event(Empty) -> Event, None;
    shutdown(Empty) -> Empty, Some(Duration::from_secs(2));
}

impl Agent {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { client: AgentClient::new(Client::new(stream.into())) }
    }
}

fn context_for(limit: Option<Duration>) -> Context {
    // A zero timeout is ttrpc's "none".
    context::with_duration(limit.unwrap_or(Duration::ZERO))
}

fn translate(call: &'static str, limit: Option<Duration>, error: ttrpc::Error) -> AgentError {
    match (error, limit) {
        (ttrpc::Error::RpcStatus(status), limit) => match (status.code.enum_value(), limit) {
            (Ok(Code::DEADLINE_EXCEEDED), Some(limit)) => AgentError::Deadline { call, limit },
            (Ok(code), _) => AgentError::Refused { code, text: printable(&status.message) },
            (Err(_), _) => AgentError::Refused { code: Code::UNKNOWN, text: printable(&status.message) },
        },
        _ => AgentError::Broken { call },
    }
}

/// The guest's text, fit for a log line or an error.
pub(super) fn printable(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
