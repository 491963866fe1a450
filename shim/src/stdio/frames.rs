//! Frames of an output channel, taken from its connection.
//!
//! What a process says is short mostly: header and payload come with one call, then. Behind a long frame, another is expected: its
//! header is read alone, so that its payload is still in the socket and can be moved on from there.

use agent_protocol::stream::{Frame, HEADER};
use std::io;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

/// Frames from here on are long.
pub const LONG: usize = 16 * 1024;

#[derive(Debug)]
pub struct Frames {
    stream: UnixStream,
    buffer: Box<[u8]>,
    /// What was read and not taken.
    start: usize,
    end: usize,
    /// Whether the last frame was a long one.
    long: bool,
}

impl Frames {
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, buffer: vec![0; LONG].into(), start: 0, end: 0, long: false }
    }

    /// The next frame's header.
    pub async fn next(&mut self) -> io::Result<Frame> {
        loop {
            if let Some(header) = self.buffer[self.start..self.end].first_chunk() {
                let frame = Frame::decode(*header).map_err(io::Error::other)?;
                self.start += HEADER;
                self.long = matches!(frame, Frame::Data(LONG..));
                return Ok(frame);
            }
            let room = if self.long { HEADER } else { self.buffer.len() };
            self.read(room).await?;
        }
    }

    /// Up to `most` bytes that were read already.
    pub fn buffered(&self, most: usize) -> &[u8] {
        &self.buffer[self.start..self.end.min(self.start.saturating_add(most))]
    }

    /// Notes that these were taken.
    pub fn consume(&mut self, count: usize) {
        self.start += count;
    }

    /// Reads what comes next.
    pub async fn fill(&mut self) -> io::Result<()> {
        self.read(self.buffer.len()).await
    }

    /// What is not in the buffer.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Reads until the buffer holds at most `room` bytes.
    async fn read(&mut self, room: usize) -> io::Result<()> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= std::mem::take(&mut self.start);
        match self.stream.read(&mut self.buffer[self.end..room]).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            length => {
                self.end += length;
                Ok(())
            }
        }
    }
}
