//! stdout and stderr: from frames into a FIFO, a file or a logger.

use super::endpoint::{Endpoint, StdioError};
use super::fifo::Fifo;
use super::frames::{Frames, LONG};
use super::logger;
use crate::identifier::Identifier;
use agent_protocol::stream::Frame;
use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::pipe::Sender;

/// Where a channel's bytes go.
#[derive(Debug)]
pub enum Output {
    Pipe(Arc<Fifo>),
    File(File),
}

/// Opens stdout and stderr; one logger serves both.
pub fn open(
    endpoints: [Endpoint; 2],
    namespace: &Identifier,
    container: &Identifier,
) -> Result<[Option<Output>; 2], StdioError> {
    let mut logger = match &endpoints {
        [Endpoint::Logger(stdout), Endpoint::Logger(stderr)] if stdout != stderr => return Err(StdioError::TwoLoggers),
        [Endpoint::Logger(logger), _] | [_, Endpoint::Logger(logger)] => {
            Some(logger::run(logger, namespace, container)?)
        }
        _ => None,
    };
    let mut outputs = [None, None];
    for (index, endpoint) in endpoints.into_iter().enumerate() {
        outputs[index] = match endpoint {
            Endpoint::Null => None,
            Endpoint::Fifo(path) => Some(Output::Pipe(Arc::new(Fifo::open(&path).map_err(StdioError::open(&path))?))),
            Endpoint::File(path) => Some(Output::File(open_file(&path)?)),
            Endpoint::Logger(_) => logger.as_mut().and_then(|pipes| pipes[index].take()).map(Output::logged),
        };
    }
    Ok(outputs)
}

fn open_file(path: &Path) -> Result<File, StdioError> {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    file.map(File::from_std).map_err(StdioError::open(path))
}

impl Output {
    fn logged(pipe: Sender) -> Self {
        Self::Pipe(Arc::new(pipe.into()))
    }

    /// Where it can be asked what was read. Open no longer than the output.
    pub fn fifo(&self) -> Weak<Fifo> {
        match self {
            Self::Pipe(fifo) => Arc::downgrade(fifo),
            Self::File(_) => Weak::new(),
        }
    }

    /// Copies until the channel's end, and tells `delivered` how many bytes were written each time. Returns once they were
    /// read; an error when the connection breaks without an end.
    pub async fn copy(mut self, stream: UnixStream, delivered: impl Fn(usize)) -> io::Result<()> {
        let mut frames = Frames::new(stream);
        while let Frame::Data(mut left) = frames.next().await? {
            while left > 0 {
                let bytes = frames.buffered(left);
                let length = if !bytes.is_empty() {
                    let length = self.write(bytes).await?;
                    frames.consume(length);
                    length
                } else if let (Self::Pipe(pipe), LONG..) = (&self, left) {
                    pipe.splice(frames.stream(), left).await?
                } else {
                    frames.fill().await?;
                    continue;
                };
                left -= length;
                delivered(length);
            }
        }
        self.finish().await
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = match self {
            Self::Pipe(pipe) => pipe.write(bytes).await?,
            Self::File(file) => file.write(bytes).await?,
        };
        if length == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(length) }
    }

    async fn finish(mut self) -> io::Result<()> {
        match &mut self {
            Self::Pipe(fifo) => {
                fifo.taken().await;
                Ok(())
            }
            Self::File(file) => file.flush().await,
        }
    }
}
