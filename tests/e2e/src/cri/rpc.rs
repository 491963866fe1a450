//! One CRI call: gRPC over HTTP/2 over containerd's socket.
//!
//! Each call has a connection of its own. That costs a millisecond, and makes calls from any thread and across a restart
//! of containerd a matter of course.

use crate::PATIENCE;
use bytes::{Buf, Bytes};
use http::HeaderMap;
use protobuf::Message;
use std::fmt;

const SOCKET: &str = "/run/containerd/containerd.sock";

/// gRPC's own number for a call that never ended.
const DEADLINE_EXCEEDED: u32 = 4;
/// gRPC's own number for a server that cannot be reached.
const UNAVAILABLE: u32 = 14;

/// A refusal, in the server's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// gRPC's numbers: 5 is NOT_FOUND.
    pub code: u32,
    pub message: String,
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "gRPC status {}: {}", self.code, self.message)
    }
}

impl std::error::Error for Status {}

impl Status {
    fn unavailable(error: impl fmt::Display) -> Self {
        Self { code: UNAVAILABLE, message: error.to_string() }
    }
}

/// Calls `method`, such as `RuntimeService/Version`, and returns what the server answered.
pub fn call<Answer: Message>(method: &str, request: &impl Message) -> Result<Answer, Status> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an event loop");
    let request = frame(request);
    runtime.block_on(async {
        let answer = tokio::time::timeout(PATIENCE, exchange(method, request)).await;
        let answer = answer.unwrap_or_else(|_| {
            let message = format!("{method} has not been answered for {} s", PATIENCE.as_secs());
            Err(Status { code: DEADLINE_EXCEEDED, message })
        })?;
        Answer::parse_from_bytes(&answer).map_err(Status::unavailable)
    })
}

/// gRPC's frame: not compressed, length, message.
fn frame(message: &impl Message) -> Bytes {
    let message = message.write_to_bytes().expect("every field is set as its type allows");
    let length = u32::try_from(message.len()).expect("a request is small");
    [&[0], &length.to_be_bytes()[..], &message].concat().into()
}

async fn exchange(method: &str, frame: Bytes) -> Result<Bytes, Status> {
    let socket = tokio::net::UnixStream::connect(SOCKET).await.map_err(Status::unavailable)?;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1 << 24).initial_connection_window_size(1 << 24);
    let (sender, connection) = builder.handshake(socket).await.map_err(Status::unavailable)?;
    // It ends with the call, when the last handle to it is dropped.
    let connection = tokio::spawn(connection);
    let answer = converse(sender, method, frame).await;
    connection.abort();
    answer
}

async fn converse(sender: h2::client::SendRequest<Bytes>, method: &str, frame: Bytes) -> Result<Bytes, Status> {
    let request = http::Request::post(format!("http://localhost/runtime.v1.{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .expect("the method is a valid path");
    let mut sender = sender.ready().await.map_err(Status::unavailable)?;
    let (response, mut body) = sender.send_request(request, false).map_err(Status::unavailable)?;
    body.send_data(frame, true).map_err(Status::unavailable)?;

    let (head, mut body) = response.await.map_err(Status::unavailable)?.into_parts();
    // A refusal may come without a body, and then its status is in the head.
    check(&head.headers)?;
    let mut answer = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(Status::unavailable)?;
        body.flow_control().release_capacity(chunk.len()).map_err(Status::unavailable)?;
        answer.extend_from_slice(&chunk);
    }
    if let Some(trailers) = body.trailers().await.map_err(Status::unavailable)? {
        check(&trailers)?;
    }
    unframe(answer.into())
}

fn unframe(mut answer: Bytes) -> Result<Bytes, Status> {
    if answer.len() < 5 {
        return Err(Status::unavailable("the answer is not a gRPC frame"));
    }
    let (compressed, length) = (answer.get_u8(), answer.get_u32());
    if compressed != 0 || answer.len() != length as usize {
        return Err(Status::unavailable("the answer is not one plain gRPC frame"));
    }
    Ok(answer)
}

fn check(headers: &HeaderMap) -> Result<(), Status> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status").map(str::parse) {
        None | Some(Ok(0)) => Ok(()),
        Some(code) => {
            let message = decoded(text("grpc-message").unwrap_or_default());
            Err(Status { code: code.unwrap_or(2), message })
        }
    }
}

/// gRPC writes what is not plain ASCII as `%` and two digits.
fn decoded(message: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = message.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(meant) if byte == b'%' => {
                bytes.push(meant);
                rest = &after[2..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::messages::PodSandboxId;

    #[test]
    fn a_message_survives_its_frame() {
        let mut id = PodSandboxId::new();
        id.pod_sandbox_id = "a pod".into();
        let bytes = unframe(frame(&id)).unwrap();
        assert_eq!(PodSandboxId::parse_from_bytes(&bytes).unwrap(), id);
    }

    #[test]
    fn half_a_frame_and_a_frame_and_a_half_are_refused() {
        let whole = frame(&PodSandboxId { pod_sandbox_id: "a pod".into(), ..Default::default() });
        assert!(unframe(whole.slice(..whole.len() - 1)).is_err());
        assert!(unframe([&whole[..], b"more"].concat().into()).is_err());
        assert!(unframe(Bytes::from_static(b"1234")).is_err());
    }

    #[test]
    fn a_refusal_is_told_in_the_servers_words() {
        let mut headers = HeaderMap::new();
        assert_eq!(check(&headers), Ok(()));
        headers.insert("grpc-status", "5".parse().unwrap());
        headers.insert("grpc-message", "no %22pod%22: 100%".parse().unwrap());
        assert_eq!(check(&headers), Err(Status { code: 5, message: "no \"pod\": 100%".into() }));
    }
}
