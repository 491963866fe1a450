//! Sockets that stand for sockets of the node: what connects to one here is carried there by the shim.
//!
//! ```text
//! program ─► listener ─► waiting, by number ─► event to the shim
//!                            └◄─ claim: the shim's vsock stream with that number ─► both are copied, until both end
//! ```
//! The guest never connects to the node. A program that connects more often than the bound waits, as for a busy server.

use crate::error::Error;
use crate::id::VolumeId;
use agent_protocol::VOLUME_FILE;
use agent_protocol::agent::SocketVolume;
use agent_protocol::sockets::{CLAIM, CLAIMED, MAX_CONNECTIONS, UNKNOWN};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Gid, Uid, chown};
use std::collections::HashMap;
use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

/// The shim sends the number at once.
const NUMBER: Duration = Duration::from_secs(10);

/// How often a program is looked at that may be gone, and how long what it sent may still take to arrive.
const LOOK: Duration = Duration::from_secs(2);
const DRAIN: Duration = Duration::from_secs(10);

/// Out of descriptors or memory: both may pass.
const RETRY: Duration = Duration::from_millis(100);

/// A program's connection that the shim is to claim.
#[derive(Debug, PartialEq, Eq)]
pub struct Waiting {
    pub volume: VolumeId,
    pub number: u64,
}

#[derive(Debug)]
struct Connection {
    program: UnixStream,
    _slot: OwnedSemaphorePermit,
}

/// Every such socket of the pod.
#[derive(Debug)]
pub struct Sockets {
    directory: PathBuf,
    listeners: Mutex<HashMap<VolumeId, AbortHandle>>,
    waiting: Mutex<HashMap<u64, Connection>>,
    last: AtomicU64,
    slots: Arc<Semaphore>,
    events: mpsc::Sender<Waiting>,
    /// For the one call that tells the shim.
    pub next: tokio::sync::Mutex<mpsc::Receiver<Waiting>>,
}

impl Sockets {
    pub fn new(directory: PathBuf) -> Self {
        let (events, next) = mpsc::channel(MAX_CONNECTIONS);
        Self {
            directory,
            listeners: Mutex::default(),
            waiting: Mutex::default(),
            last: AtomicU64::new(0),
            slots: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            events,
            next: tokio::sync::Mutex::new(next),
        }
    }

    /// The socket listens when this returns. One that is there stays as it is.
    pub fn prepare(self: &Arc<Self>, id: &VolumeId, socket: &SocketVolume) -> Result<(), Error> {
        let mut listeners = lock(&self.listeners);
        if listeners.contains_key(id) {
            return Ok(());
        }
        let directory = self.directory.join(id.as_str());
        let listener = listen(&directory, socket).map_err(Error::system("listen in", directory.display()))?;
        let task = tokio::spawn(Arc::clone(self).accept(id.clone(), listener));
        listeners.insert(id.clone(), task.abort_handle());
        Ok(())
    }

    /// Nobody can connect any more. Connections end with their programs.
    pub fn release(&self, id: &VolumeId) -> Result<(), Error> {
        let Some(task) = lock(&self.listeners).remove(id) else { return Ok(()) };
        task.abort();
        let directory = self.directory.join(id.as_str());
        std::fs::remove_dir_all(&directory).map_err(Error::system("remove", directory.display()))
    }

    async fn accept(self: Arc<Self>, id: VolumeId, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((program, _)) => self.tell(&id, program).await,
                Err(error) => {
                    tracing::warn!(volume = id.as_str(), %error, "cannot accept a connection");
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Returns when the shim can be told of the next one.
    async fn tell(self: &Arc<Self>, id: &VolumeId, program: UnixStream) {
        let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else { return };
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        lock(&self.waiting).insert(number, Connection { program, _slot: slot });
        let sockets = Arc::clone(self);
        tokio::spawn(async move {
            sleep(CLAIM).await;
            if lock(&sockets.waiting).remove(&number).is_some() {
                tracing::warn!("a connection to a socket of the node was not claimed");
            }
        });
        // Has room for all slots.
        let _ = self.events.send(Waiting { volume: id.clone(), number }).await;
    }

    /// Serves one stream of the shim to its end.
    pub async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        if let Err(error) = self.relay(stream).await {
            tracing::debug!(%error, "a connection to a socket of the node ended");
        }
    }

    async fn relay(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        let number = timeout(NUMBER, stream.read_u64_le()).await??;
        let claimed = lock(&self.waiting).remove(&number);
        let Some(mut connection) = claimed else {
            stream.write_u8(UNKNOWN).await?;
            return stream.shutdown().await;
        };
        stream.write_u8(CLAIMED).await?;
        let program = connection.program.as_fd().try_clone_to_owned()?;
        tokio::select! {
            copied = copy_bidirectional(&mut connection.program, &mut stream) => copied.map(drop),
            () = gone(program) => Ok(()),
        }
    }
}

fn listen(directory: &Path, socket: &SocketVolume) -> io::Result<UnixListener> {
    std::fs::create_dir_all(directory)?;
    let path = directory.join(VOLUME_FILE);
    let listener = UnixListener::bind(&path)?;
    chown(&path, Some(Uid::from_raw(socket.uid)), Some(Gid::from_raw(socket.gid)))?;
    // After the owner, a change of which takes bits away.
    std::fs::set_permissions(&path, Permissions::from_mode(socket.mode & 0o7777))?;
    Ok(listener)
}

/// Waits until the other end of a socket was closed, not only for one direction, and what it sent had time to be read: a
/// server that has nothing to say would keep the connection for ever.
async fn gone(socket: OwnedFd) {
    loop {
        sleep(LOOK).await;
        let mut looked = [PollFd::new(socket.as_fd(), PollFlags::empty())];
        let found = poll(&mut looked, PollTimeout::ZERO);
        let hung_up = looked[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP));
        if found.is_err() || hung_up {
            return sleep(DRAIN).await;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    struct Pod {
        root: tempfile::TempDir,
        sockets: Arc<Sockets>,
        id: VolumeId,
    }

    fn pod() -> Pod {
        let root = tempfile::tempdir().unwrap();
        let sockets = Arc::new(Sockets::new(root.path().join("v")));
        let id = VolumeId::parse("v1").unwrap();
        let socket = SocketVolume {
            mode: 0o140_620,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            ..SocketVolume::default()
        };
        sockets.prepare(&id, &socket).unwrap();
        sockets.prepare(&id, &socket).unwrap();
        Pod { root, sockets, id }
    }

    impl Pod {
        fn path(&self) -> PathBuf {
            self.root.path().join("v/v1").join(VOLUME_FILE)
        }

        async fn next(&self) -> u64 {
            let waiting = self.sockets.next.lock().await.recv().await.unwrap();
            assert_eq!(waiting.volume, self.id);
            waiting.number
        }

        /// As the shim does it.
        async fn claim(&self, number: u64) -> (tokio::io::DuplexStream, u8) {
            let (mut node, guest) = tokio::io::duplex(64);
            let sockets = Arc::clone(&self.sockets);
            tokio::spawn(async move { sockets.serve(guest).await });
            node.write_u64_le(number).await.unwrap();
            let answer = node.read_u8().await.unwrap();
            (node, answer)
        }
    }

    #[tokio::test]
    async fn a_claimed_connection_carries_bytes_and_each_direction_ends_by_itself() {
        let pod = pod();
        assert_eq!(std::fs::metadata(pod.path()).unwrap().mode() & 0o7777, 0o620);
        let mut program = UnixStream::connect(pod.path()).await.unwrap();
        let (mut node, answer) = pod.claim(pod.next().await).await;
        assert_eq!(answer, CLAIMED);
        program.write_all(b"request").await.unwrap();
        program.shutdown().await.unwrap();
        let mut request = Vec::new();
        node.read_to_end(&mut request).await.unwrap();
        assert_eq!(request, b"request");
        node.write_all(b"answer").await.unwrap();
        drop(node);
        let mut answer = Vec::new();
        program.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
    }

    #[tokio::test]
    async fn a_number_is_claimed_once() {
        let pod = pod();
        let _program = UnixStream::connect(pod.path()).await.unwrap();
        let number = pod.next().await;
        assert_eq!(pod.claim(number).await.1, CLAIMED);
        assert_eq!(pod.claim(number).await.1, UNKNOWN);
        assert_eq!(pod.claim(u64::MAX).await.1, UNKNOWN);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_shim_does_not_claim_ends() {
        let pod = pod();
        let mut program = UnixStream::connect(pod.path()).await.unwrap();
        let number = pod.next().await;
        assert_eq!(program.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(pod.claim(number).await.1, UNKNOWN);
    }

    #[tokio::test]
    async fn more_than_the_bound_wait_until_one_leaves() {
        let pod = pod();
        let mut programs = Vec::new();
        for _ in 0..MAX_CONNECTIONS + 2 {
            programs.push(UnixStream::connect(pod.path()).await.unwrap());
        }
        let mut claimed = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            claimed.push(pod.claim(pod.next().await).await.0);
        }
        let early = timeout(Duration::from_millis(50), pod.next()).await;
        assert!(early.is_err());
        drop((programs.remove(0), claimed.remove(0)));
        pod.next().await;
    }

    #[tokio::test]
    async fn a_released_socket_is_gone() {
        let pod = pod();
        pod.sockets.release(&pod.id).unwrap();
        pod.sockets.release(&pod.id).unwrap();
        assert!(UnixStream::connect(pod.path()).await.is_err());
        assert!(!pod.root.path().join("v/v1").exists());
    }
}
