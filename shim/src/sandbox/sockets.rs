//! Programs of the guest that talk to a socket of the node: the agent listens where the container expects the socket, and
//! tells of each connection; the shim claims it with a stream to the guest, connects to the node's socket, and copies.
//!
//! The guest names a connection by a number of its own and nothing of the node. Which socket is meant was decided, and
//! looked up, when the container was made.

use super::boot::CONNECT;
use super::policy::Resolved;
use super::{Inner, SandboxError};
use crate::identifier::Identifier;
use agent_protocol::SOCKET_PORT;
use agent_protocol::agent::SocketConnection;
use agent_protocol::sockets::{CLAIM, CLAIMED, MAX_CONNECTIONS};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// Connections that the guest has told of, those that wait for others to end among them. It keeps to [`MAX_CONNECTIONS`]
/// if its agent is ours.
const MAX_TOLD: usize = 2 * MAX_CONNECTIONS;

/// A program of the node that is too busy to take a connection.
const RETRY: Duration = Duration::from_millis(20);

/// How often the guest's end is looked at that may be gone, and how long what it sent may still take to arrive.
const LOOK: Duration = Duration::from_secs(2);
const DRAIN: Duration = Duration::from_secs(10);

/// The node's sockets that a pod's containers have.
#[derive(Debug)]
pub(super) struct Sockets {
    /// By the guest's volume.
    places: Mutex<HashMap<String, Place>>,
    told: Arc<Semaphore>,
    connected: Arc<Semaphore>,
}

#[derive(Debug)]
struct Place {
    container: Identifier,
    socket: Arc<Resolved>,
}

impl Sockets {
    pub fn new() -> Self {
        let (told, connected) = (Semaphore::new(MAX_TOLD), Semaphore::new(MAX_CONNECTIONS));
        Self { places: Mutex::default(), told: Arc::new(told), connected: Arc::new(connected) }
    }

    /// From here on connections to a volume of the guest are for this socket.
    pub fn add(&self, volume: String, container: &Identifier, socket: Resolved) {
        self.places().insert(volume, Place { container: container.clone(), socket: Arc::new(socket) });
    }

    /// Takes away a container's. Returns the guest's volumes that stand for nothing any more.
    pub fn remove(&self, container: &Identifier) -> Vec<String> {
        self.places().extract_if(|_, place| place.container == *container).map(|(volume, _)| volume).collect()
    }

    fn places(&self) -> MutexGuard<'_, HashMap<String, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Has the guest forget a container's sockets. Waits for nobody.
    pub(super) fn release_sockets(&self, container: &Identifier) {
        let volumes = self.sockets.remove(container);
        if volumes.is_empty() || self.vmm.stopped().borrow().is_some() {
            return;
        }
        self.agent.forget_volumes(volumes);
    }
}

/// Takes care of a connection that the guest tells of; returns at once. One that makes no sense, or is more than there may
/// be, is left to end by itself.
pub(super) fn carry(sandbox: &Arc<Inner>, event: &SocketConnection) {
    let sockets = &sandbox.sockets;
    let Some(socket) = sockets.places().get(&event.volume).map(|place| place.socket.clone()) else { return };
    let Ok(told) = sockets.told.clone().try_acquire_owned() else { return };
    let (connected, number, sandbox) = (sockets.connected.clone(), event.connection, Arc::downgrade(sandbox));
    tokio::spawn(async move {
        let _told = told;
        let Ok(Ok(_connected)) = timeout(CLAIM, connected.acquire_owned()).await else { return };
        if let Err(error) = relay(&sandbox, &socket, number).await {
            // The guest makes these: they are no news for the operator.
            tracing::debug!(socket = %socket.path.display(), %error, "a connection to a socket of the node ended");
        }
    });
}

async fn relay(sandbox: &Weak<Inner>, socket: &Resolved, number: u64) -> Result<(), SandboxError> {
    let failed = || SandboxError::host("connect to", &socket.path.display());
    let Some(sandbox) = sandbox.upgrade() else { return Ok(()) };
    let guest = sandbox.vmm.connect(SOCKET_PORT, CONNECT).await?;
    drop(sandbox);
    let claimed = timeout(CLAIM, claim(guest, number)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let mut guest = claimed.map_err(failed())?;
    // When it fails, the program's connection ends with the stream.
    let mut node = connect(&socket.fd).await.map_err(failed())?;
    let left = guest.as_fd().try_clone_to_owned().map_err(failed())?;
    tokio::select! {
        copied = copy_bidirectional(&mut guest, &mut node) => copied.map(drop).map_err(failed()),
        () = gone(left) => Ok(()),
    }
}

async fn claim(mut guest: UnixStream, number: u64) -> io::Result<UnixStream> {
    guest.write_u64_le(number).await?;
    match guest.read_u8().await? {
        CLAIMED => Ok(guest),
        _ => Err(io::Error::other("the guest does not know the connection any more")),
    }
}

/// The socket that was found when the container was made, whatever has its name by now.
async fn connect(socket: &OwnedFd) -> io::Result<UnixStream> {
    let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
    let connected = async {
        loop {
            match UnixStream::connect(&path).await {
                // As many wait already as its program lets.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(RETRY).await,
                result => return result,
            }
        }
    };
    timeout(CONNECT, connected).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Waits until the other end of a stream was closed, not only for one direction, and what it sent had time to be read: a
/// program of the node that has nothing to say would keep the connection for ever.
async fn gone(stream: OwnedFd) {
    loop {
        sleep(LOOK).await;
        let mut looked = [PollFd::new(stream.as_fd(), PollFlags::empty())];
        let found = poll(&mut looked, PollTimeout::ZERO);
        let hung_up = looked[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP));
        if found.is_err() || hung_up {
            return sleep(DRAIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn a_socket_is_the_one_that_was_found() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("s");
        let found = UnixListener::bind(&path).unwrap();
        let resolved = Resolved::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        let _connection = connect(&resolved.fd).await.unwrap();
        found.accept().await.unwrap();
        drop(found);
        assert_eq!(connect(&resolved.fd).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn a_busy_program_is_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("s");
        let busy = tokio::net::UnixSocket::new_stream().unwrap();
        busy.bind(&path).unwrap();
        let busy = busy.listen(1).unwrap();
        let resolved = Resolved::open(&path).unwrap();
        let mut waiting = Vec::new();
        while let Ok(connection) = UnixStream::connect(&path).await {
            waiting.push(connection);
        }
        let accept = async {
            sleep(4 * RETRY).await;
            busy.accept().await.unwrap();
        };
        let (connected, ()) = tokio::join!(connect(&resolved.fd), accept);
        connected.unwrap();
    }

    #[test]
    fn a_containers_sockets_go_with_it() {
        let root = tempfile::tempdir().unwrap();
        let sockets = Sockets::new();
        let [web, db]: [Identifier; 2] = ["web", "db"].map(|name| name.parse().unwrap());
        for (volume, container) in [("v1", &web), ("v2", &db)] {
            sockets.add(volume.to_owned(), container, Resolved::open(root.path()).unwrap());
        }
        assert_eq!(sockets.remove(&web), ["v1"]);
        assert!(sockets.remove(&web).is_empty());
        assert!(sockets.places().contains_key("v2"));
    }
}
