//! A connection to a port of a pod, as `kubectl port-forward` makes it.
//!
//! A port has two channels, one for bytes and one for what went wrong. The first message of each is the port's number.

use super::websocket::{self, Receiver, Sender};

const DATA: u8 = 0;
const ERROR: u8 = 1;

/// One forwarded connection.
#[derive(Debug)]
pub struct Tunnel {
    sender: Sender,
    receiver: Receiver,
    data: Vec<u8>,
    error: Vec<u8>,
}

impl Tunnel {
    #[track_caller]
    pub(super) fn open(url: &str, port: u16) -> Self {
        let opened = websocket::open(url, &["v4.channel.k8s.io"]);
        let (sender, receiver, _) = opened.expect("containerd's streaming server");
        let mut tunnel = Self { sender, receiver, data: Vec::new(), error: Vec::new() };
        while (tunnel.data.len() < 2 || tunnel.error.len() < 2) && tunnel.read() {}
        for greeting in [&mut tunnel.data, &mut tunnel.error] {
            assert_eq!(greeting.drain(..2).as_slice(), port.to_le_bytes(), "another port answers");
        }
        tunnel
    }

    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(1 << 14) {
            self.sender.send(&[&[DATA], part].concat()).expect("the streaming server takes bytes");
        }
    }

    /// Reads until `done` with what came so far, and returns it.
    #[track_caller]
    pub fn read_until(&mut self, done: impl Fn(&[u8]) -> bool) -> &[u8] {
        while !done(&self.data) {
            assert!(self.read(), "the tunnel ended: {}", String::from_utf8_lossy(&self.error));
        }
        &self.data
    }

    /// Reads to the end: what came, and what went wrong.
    #[track_caller]
    pub fn finish(mut self) -> (Vec<u8>, String) {
        while self.error.is_empty() && self.read() {}
        (self.data, String::from_utf8_lossy(&self.error).into_owned())
    }

    #[track_caller]
    fn read(&mut self) -> bool {
        let Some(message) = self.receiver.receive().expect("the streaming server goes on") else { return false };
        match message.split_first() {
            Some((&DATA, payload)) => self.data.extend(payload),
            Some((&ERROR, payload)) => self.error.extend(payload),
            _ => {}
        }
        true
    }
}
