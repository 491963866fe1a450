//! Requests to the VMM and its replies.
//!
//! A guest may have taken the VMM over, so that nothing it says is believed beyond its effect on its own sandbox: packets
//! are bounded, what was not asked for is ignored, and what breaks the protocol ends the connection (and with it the VMM).

use super::socket::Socket;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use vmm_protocol::{Answer, Call, Event, Message, PciAddress, Reply, Request, StopReason, decode, encode};

use super::super::SandboxError;
use super::super::agent::printable;

/// The shim's end of the control socket.
#[derive(Clone, Debug)]
pub(in super::super) struct Client {
    shared: Arc<Shared>,
    said: watch::Receiver<Said>,
}

/// What the VMM has said without being asked, so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Said {
    pub agent_ready: bool,
    pub stopped: Option<StopReason>,
    /// The first failure of each device, for as many devices as a machine has.
    pub failed: BTreeMap<u32, String>,
    /// Nothing more will be said. Holds what was wrong, if anything.
    pub closed: Option<Option<String>>,
}

#[derive(Debug)]
struct Shared {
    socket: Socket,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    last_id: u32,
    replies: HashMap<u32, oneshot::Sender<Result<Answer, String>>>,
    closed: bool,
}

impl Client {
    /// Starts the task that receives.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let shared = Arc::new(Shared { socket: Socket::new(socket)?, waiting: Mutex::default() });
        let (sender, said) = watch::channel(Said::default());
        tokio::spawn(receive(Arc::clone(&shared), sender));
        Ok(Self { shared, said })
    }

    /// What the VMM has said, to look at and to wait on.
    pub fn said(&self) -> watch::Receiver<Said> {
        self.said.clone()
    }

    /// Sends one request and waits for its reply. `operation` completes "the VMM refused to …".
    pub async fn call(
        &self,
        operation: &str,
        call: Call,
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<Answer, SandboxError> {
        let gone = || SandboxError::Gone(format!("the VMM ended before it could {operation}"));
        let (id, reply) = self.shared.expect_reply().ok_or_else(gone)?;
        // Whatever ends this future, nobody waits for the reply any more.
        let _forget = Forget { shared: &self.shared, id };
        let exchange = async {
            let request = encode(&Request { id, call }).map_err(io::Error::other);
            let request = request.map_err(SandboxError::host("ask the VMM to", operation))?;
            self.shared.socket.send(&request, descriptors).await.map_err(|_| gone())?;
            reply.await.map_err(|_| gone())
        };
        let answer = tokio::time::timeout(limit, exchange).await;
        answer
            .map_err(|_| SandboxError::deadline(format!("waiting for the VMM to {operation}"), limit))??
            .map_err(|reason| SandboxError::Refused { operation: operation.to_owned(), reason: printable(&reason) })
    }
}

impl Shared {
    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect_reply(&self) -> Option<(u32, oneshot::Receiver<Result<Answer, String>>)> {
        let mut waiting = self.waiting();
        if waiting.closed {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        waiting.last_id = waiting.last_id.wrapping_add(1);
        let id = waiting.last_id;
        waiting.replies.insert(id, sender);
        Some((id, receiver))
    }
}

struct Forget<'a> {
    shared: &'a Shared,
    id: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.waiting().replies.remove(&self.id);
    }
}

async fn receive(shared: Arc<Shared>, said: watch::Sender<Said>) {
    let wrong = loop {
        match shared.socket.receive().await {
            Ok(None) => break None,
            Ok(Some(packet)) => match decode(&packet) {
                Ok(message) => take(&shared, &said, message),
                Err(error) => break Some(error.to_string()),
            },
            // A VMM that was killed resets the connection when it left something unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break None,
            Err(error) => break Some(error.to_string()),
        }
    };
    let mut waiting = shared.waiting();
    waiting.closed = true;
    waiting.replies.clear();
    drop(waiting);
    said.send_modify(|said| said.closed = Some(wrong));
}

fn take(shared: &Shared, said: &watch::Sender<Said>, message: Message) {
    match message {
        Message::Reply(Reply { id, result }) => {
            // An id that nobody waits for is a late reply, or a lie: both are without effect.
            if let Some(waiting) = shared.waiting().replies.remove(&id) {
                let _ = waiting.send(result);
            }
        }
        Message::Event(Event::AgentReady) => said.send_modify(|said| said.agent_ready = true),
        Message::Event(Event::DeviceFailed { device, reason }) => {
            said.send_if_modified(|said| {
                let first = said.failed.len() < usize::from(PciAddress::SLOTS) && !said.failed.contains_key(&device.0);
                if first {
                    said.failed.insert(device.0, reason);
                }
                first
            });
        }
        Message::Event(Event::Stopped(reason)) => said.send_modify(|said| said.stopped = Some(reason)),
    }
}

#[cfg(test)]
mod tests;
