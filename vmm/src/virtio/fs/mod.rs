//! virtio-fs: FUSE requests of the guest, passed to a file server in another process.
//!
//! The server sees neither guest memory nor queues: it reads one request per packet of a socket and writes one reply
//! per packet. This device sees no file. When the server is gone, requests fail and the device stays.
//!
//! Replies may come in any order. A reset forgets the requests in flight; their replies are dropped when they come.

mod request;
mod spec;
#[cfg(test)]
mod tests;
mod worker;

use super::device::{DeviceTraits, Resources, StartError, VirtioDevice, read_config_bytes};
use super::ring::Ring;
use crate::jail::ThreadKind;
use crate::worker::Worker;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use spec::{CONFIG_LENGTH, DEVICE_TYPE, QUEUE_SIZE, TAG_LENGTH};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use virtio_queue::Queue;
use worker::Relay;

/// For what must not wait for other requests: `FORGET` and interrupts.
const HIGH_PRIORITY_QUEUE: usize = 0;
const REQUEST_QUEUE: usize = 1;

/// Why a share cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    #[error("tag of a file system has {0} bytes; it needs 1 to {TAG_LENGTH}")]
    Tag(usize),
    #[error("file server is not reached by a SEQPACKET socket")]
    Socket,
    #[error("cannot make the file server's socket non-blocking")]
    NonBlocking(#[source] io::Error),
}

#[derive(Debug)]
pub struct Fs {
    config: [u8; CONFIG_LENGTH],
    server: Arc<OwnedFd>,
    /// Tags are never used twice, not even after a reset.
    next_tag: u64,
    worker: Option<Worker<Relay>>,
}

impl Fs {
    /// A share that the guest mounts by `tag`, served at the other end of `server`, a `SOCK_SEQPACKET` socket.
    pub fn new(tag: &str, server: OwnedFd) -> Result<Self, FsError> {
        if tag.is_empty() || tag.len() > TAG_LENGTH {
            return Err(FsError::Tag(tag.len()));
        }
        if getsockopt(&server, sockopt::SockType) != Ok(SockType::SeqPacket) {
            return Err(FsError::Socket);
        }
        set_non_blocking(&server).map_err(FsError::NonBlocking)?;
        Ok(Self { config: spec::config(tag), server: Arc::new(server), next_tag: 1, worker: None })
    }
}

fn set_non_blocking(socket: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

impl VirtioDevice for Fs {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits { device_type: DEVICE_TYPE, features: 0, queue_sizes: &[QUEUE_SIZE, QUEUE_SIZE] }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn start(&mut self, mut resources: Resources) -> Result<(), StartError> {
        let high_priority = Ring::take(&mut resources, HIGH_PRIORITY_QUEUE)?;
        let requests = Ring::take(&mut resources, REQUEST_QUEUE)?;
        let relay = Relay::new([high_priority, requests], Arc::clone(&self.server), self.next_tag);
        self.worker = Some(Worker::spawn(ThreadKind::Fs, relay).map_err(StartError::Worker)?);
        Ok(())
    }

    fn stop(&mut self) -> Vec<Option<Queue>> {
        let Some(worker) = self.worker.take() else { return vec![None, None] };
        match worker.stop() {
            Ok(relay) => {
                self.next_tag = relay.next_tag();
                relay.into_queues().map(Some).into()
            }
            Err(error) => {
                tracing::error!(%error, "cannot end the file system's thread");
                vec![None, None]
            }
        }
    }
}
