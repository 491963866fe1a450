//! A request of the transmit queue is text for the log.

use super::log::Log;
use crate::jail::ThreadKind;
use crate::virtio::chain::{Chain, Memory};
use crate::virtio::service::Service;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Bytes copied at once: what a pipe takes whole or not at all (`PIPE_BUF`).
pub const CHUNK: usize = 4096;

#[derive(Debug)]
pub struct Transmit {
    log: Arc<Mutex<Log>>,
}

impl Transmit {
    pub fn new(log: Arc<Mutex<Log>>) -> io::Result<Self> {
        log.lock().unwrap_or_else(PoisonError::into_inner).never_wait()?;
        Ok(Self { log })
    }
}

impl Service for Transmit {
    const THREAD: ThreadKind = ThreadKind::Console;

    fn serve(&mut self, memory: &Memory, chain: &Chain) -> u32 {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let mut chunk = [0; CHUNK];
        let mut offset = 0;
        while offset < chain.readable.len() {
            let part = &mut chunk[..CHUNK.min(chain.readable.len() - offset)];
            if chain.readable.copy_to(memory, offset, part).is_err() {
                break;
            }
            if !log.write(part, Instant::now()) {
                // The guest decides how long a request is, not how long we are busy with it.
                log.drop_bytes(chain.readable.len() - offset - part.len());
                break;
            }
            offset += part.len();
        }
        0
    }
}
