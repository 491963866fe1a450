//! A request of the transmit queue is text for the log.

use super::log::Log;
use crate::jail::ThreadKind;
use crate::virtio::chain::{Chain, Memory};
use crate::virtio::service::Service;
use std::time::Instant;

/// Bytes copied at once: what a pipe takes whole or not at all (`PIPE_BUF`).
pub const CHUNK: usize = 4096;

#[derive(Debug)]
pub struct Transmit {
    log: Log,
}

impl Transmit {
    pub fn new(log: Log) -> Self {
        Self { log }
    }
}

impl Service for Transmit {
    const THREAD: ThreadKind = ThreadKind::Console;

    fn serve(&mut self, memory: &Memory, chain: &Chain) -> u32 {
        let mut chunk = [0; CHUNK];
        let mut offset = 0;
        while offset < chain.readable.len() {
            let part = &mut chunk[..CHUNK.min(chain.readable.len() - offset)];
            if chain.readable.copy_to(memory, offset, part).is_err() {
                break;
            }
            if !self.log.write(part, Instant::now()) {
                // The guest decides how long a request is, not how long we are busy with it.
                self.log.drop_bytes(chain.readable.len() - offset - part.len());
                break;
            }
            offset += part.len();
        }
        0
    }
}
