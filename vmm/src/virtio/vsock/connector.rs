//! How the rest of the VMM asks for connections to the guest.

use super::muxer::MAX_CONNECTIONS;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("guest refused the connection to vsock port {0}")]
    Refused(u32),
    #[error("connection to vsock port {0} was given up: its stream failed or closed")]
    StreamClosed(u32),
    #[error("connection to vsock port {0} was lost: the guest's driver stopped")]
    Stopped(u32),
    #[error("too many vsock connections; the limit is {MAX_CONNECTIONS}")]
    TooMany,
    #[error("cannot set up the stream of vsock port {port}")]
    Stream { port: u32, source: io::Error },
}

/// Hears once how a connection attempt ended.
pub struct Done(Option<Box<Answer>>);

type Answer = dyn FnOnce(Result<(), ConnectError>) + Send;

impl Done {
    pub fn new(answer: Box<Answer>) -> Self {
        Self(Some(answer))
    }

    /// Passes the result on; only the first one counts.
    pub fn answer(&mut self, result: Result<(), ConnectError>) {
        if let Some(answer) = self.0.take() {
            answer(result);
        }
    }
}

impl fmt::Debug for Done {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Done").field("answered", &self.0.is_none()).finish()
    }
}

/// A connection that somebody wants.
#[derive(Debug)]
pub struct Connect {
    pub port: u32,
    pub stream: UnixStream,
    pub done: Done,
}

/// Requests on their way to the device thread. They wait here until a driver is up.
#[derive(Debug)]
pub struct Inbox {
    requests: Mutex<VecDeque<Connect>>,
    /// Signalled when there are requests.
    pub event: EventFd,
}

impl Inbox {
    fn push(&self, request: Connect) -> Result<(), Connect> {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if requests.len() >= MAX_CONNECTIONS {
            return Err(request);
        }
        requests.push_back(request);
        Ok(())
    }

    pub fn take(&self) -> VecDeque<Connect> {
        // Fails only when the counter was read already.
        let _ = self.event.read();
        std::mem::take(&mut *self.requests.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Connects streams to ports of the guest.
#[derive(Clone, Debug)]
pub struct Connector {
    inbox: Arc<Inbox>,
}

impl Connector {
    pub(super) fn new() -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self { inbox: Arc::new(Inbox { requests: Mutex::default(), event }) })
    }

    pub(super) fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// Connects `stream`, a `SOCK_STREAM` Unix socket, to `port` of the guest, now or when its driver is up.
    ///
    /// `done` hears of the guest's answer, usually on the device's thread. Nothing bounds how long a guest takes:
    /// closing the other end of `stream` gives the attempt up.
    pub fn connect(&self, port: u32, stream: OwnedFd, done: Box<dyn FnOnce(Result<(), ConnectError>) + Send>) {
        let stream = UnixStream::from(stream);
        let mut done = Done::new(done);
        if let Err(source) = stream.set_nonblocking(true) {
            return done.answer(Err(ConnectError::Stream { port, source }));
        }
        if let Err(mut refused) = self.inbox.push(Connect { port, stream, done }) {
            return refused.done.answer(Err(ConnectError::TooMany));
        }
        // Fails only when the counter is at its limit, and then an event is pending anyhow.
        let _ = self.inbox.event.write(1);
    }
}
