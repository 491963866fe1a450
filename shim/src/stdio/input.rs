//! stdin: from a FIFO into frames.

use super::endpoint::StdioError;
use agent_protocol::stream::{Frame, HEADER, MAX_PAYLOAD};
use std::io;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe::{OpenOptions, Receiver, Sender};

/// What is read at once. Small: stdin is mostly typed or absent.
const CHUNK: usize = 16 * 1024;
const _: () = assert!(CHUNK <= MAX_PAYLOAD);

/// The reading end.
#[derive(Debug)]
pub struct Input(Receiver);

/// A writing end of our own: without it, stdin would end whenever no client is connected.
#[derive(Debug)]
pub struct InputWriter {
    _writer: Sender,
}

/// Opens both ends, in the order in which neither waits.
pub fn open(path: &Path) -> Result<(Input, InputWriter), StdioError> {
    let receiver = OpenOptions::new().open_receiver(path).map_err(StdioError::open(path))?;
    let writer = OpenOptions::new().open_sender(path).map_err(StdioError::open(path))?;
    Ok((Input(receiver), InputWriter { _writer: writer }))
}

impl Input {
    /// Copies until every writer has closed, then tells the end.
    pub async fn copy(mut self, mut stream: UnixStream) -> io::Result<()> {
        let mut buffer = vec![0; HEADER + CHUNK];
        loop {
            let length = self.0.read(&mut buffer[HEADER..]).await?;
            if length == 0 {
                return stream.write_all(&Frame::End.encode()).await;
            }
            buffer[..HEADER].copy_from_slice(&Frame::Data(length).encode());
            stream.write_all(&buffer[..HEADER + length]).await?;
        }
    }
}
