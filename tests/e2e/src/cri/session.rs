//! The streams of a command or of a container, as `kubectl exec` and `kubectl attach` have them.
//!
//! Every message begins with the number of its channel (Kubernetes' `channel.k8s.io`).

use super::websocket::{self, Receiver, Sender};
use crate::Finished;

/// From version 5 on, one stream may end before the others.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
    /// How the command ended, as a Kubernetes status.
    Error = 3,
    Resize = 4,
    /// A channel's number follows, which ends.
    Close = 255,
}

/// Streams that are open.
#[derive(Debug)]
pub struct Session {
    sender: Sender,
    receiver: Receiver,
    half_close: bool,
    open: bool,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    status: Vec<u8>,
}

impl Session {
    #[track_caller]
    pub(super) fn open(url: &str) -> Self {
        let (sender, receiver, protocol) = websocket::open(url, &PROTOCOLS).expect("containerd's streaming server");
        let half_close = protocol == PROTOCOLS[0];
        Self { sender, receiver, half_close, open: true, stdout: Vec::new(), stderr: Vec::new(), status: Vec::new() }
    }

    /// Whether input may end while output goes on; containerd 1.7 has no way to say so.
    pub fn can_end_input(&self) -> bool {
        self.half_close
    }

    #[track_caller]
    pub fn type_in(&mut self, text: &str) {
        self.send(Channel::Stdin, text.as_bytes());
    }

    /// The window's size, in characters.
    #[track_caller]
    pub fn resize(&mut self, columns: u16, rows: u16) {
        let size = serde_json::json!({"Width": columns, "Height": rows});
        self.send(Channel::Resize, size.to_string().as_bytes());
    }

    #[track_caller]
    pub fn end_input(&mut self) {
        assert!(self.half_close, "this containerd cannot end input alone");
        self.send(Channel::Close, &[Channel::Stdin as u8]);
    }

    /// Leaves: every stream ends.
    pub fn hang_up(mut self) {
        self.sender.close().ok();
    }

    /// Sends input from another thread, so that output can be read meanwhile.
    pub fn feed(&self, input: Vec<u8>) -> std::thread::JoinHandle<()> {
        let mut sender = self.sender.another();
        std::thread::spawn(move || {
            for part in input.chunks(1 << 14) {
                sender.send(&message(Channel::Stdin, part)).expect("the streaming server takes input");
            }
        })
    }

    pub fn stdout(&self) -> &[u8] {
        &self.stdout
    }

    /// Reads until stdout has `text`, and forgets what came up to there.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        loop {
            let found = self.stdout.windows(text.len()).position(|window| window == text.as_bytes());
            if let Some(position) = found {
                self.stdout.drain(..position + text.len());
                return;
            }
            assert!(self.read(), "the streams ended without {text:?}: {}", String::from_utf8_lossy(&self.stdout));
        }
    }

    /// Reads until stdout has `length` bytes.
    #[track_caller]
    pub fn expect_bytes(&mut self, length: usize) {
        while self.stdout.len() < length {
            assert!(self.read(), "the streams ended after {} bytes of {length}", self.stdout.len());
        }
    }

    /// Reads all there is, and the exit code, which is -1 for a session that ended without one.
    #[track_caller]
    pub fn finish(mut self) -> Finished {
        while self.read() {}
        let code = exit_code(&self.status);
        if code.is_none() {
            eprintln!("the session's status: {}", String::from_utf8_lossy(&self.status));
        }
        Finished { code: code.unwrap_or(-1), stdout: self.stdout, stderr: self.stderr }
    }

    /// Reads one message. False when there are no more.
    #[track_caller]
    fn read(&mut self) -> bool {
        if !self.open {
            return false;
        }
        let Some(message) = self.receiver.receive().expect("the streaming server goes on") else {
            self.open = false;
            return false;
        };
        if let Some((channel, payload)) = message.split_first() {
            match channel {
                1 => self.stdout.extend(payload),
                2 => self.stderr.extend(payload),
                3 => self.status.extend(payload),
                _ => {}
            }
        }
        true
    }

    #[track_caller]
    fn send(&mut self, channel: Channel, payload: &[u8]) {
        self.sender.send(&message(channel, payload)).expect("the streaming server takes input");
    }
}

fn message(channel: Channel, payload: &[u8]) -> Vec<u8> {
    [&[channel as u8], payload].concat()
}

/// Success is zero; another code is a cause of the failure.
fn exit_code(status: &[u8]) -> Option<i32> {
    let status: serde_json::Value = serde_json::from_slice(status).ok()?;
    if status["status"] == "Success" {
        return Some(0);
    }
    let causes = status["details"]["causes"].as_array()?;
    let cause = causes.iter().find(|cause| cause["reason"] == "ExitCode")?;
    cause["message"].as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::exit_code;

    #[test]
    fn the_exit_code_is_a_cause_of_the_failure() {
        let failure = br#"{"status":"Failure","details":{"causes":[{"reason":"ExitCode","message":"42"}]}}"#;
        assert_eq!(exit_code(failure), Some(42));
        assert_eq!(exit_code(br#"{"status":"Success"}"#), Some(0));
        assert_eq!(exit_code(br#"{"status":"Failure","message":"no such container"}"#), None);
        assert_eq!(exit_code(b""), None);
    }
}
