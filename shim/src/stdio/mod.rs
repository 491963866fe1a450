//! A process's standard streams on the node: what containerd names them, and the copying to and from the guest.
//!
//! Every channel has its own connection to the guest and its own task: whoever does not read stalls himself
//! alone. The tasks run until their channel ends, in-band; what a process left behind that holds the channel
//! open, and a reader who does not read, are bounded by whoever waits ([`Copies::drained`]).

mod endpoint;
mod fifo;
mod frames;
mod input;
mod logger;
mod output;

pub use endpoint::{Endpoint, StdioError};

use crate::identifier::Identifier;
use agent_protocol::agent::Streams;
use agent_protocol::stream::{Channel, Hello};
use fifo::Fifo;
use input::InputWriter;
use output::Output;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// What containerd said about a process's streams; told back exactly by `State`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stdio {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// The node's ends, open and not yet connected to the guest.
#[derive(Debug, Default)]
pub struct Opened {
    /// Known, and not open before the process starts: [`Copies::begin_input`].
    stdin: Option<PathBuf>,
    stdout: Option<Output>,
    stderr: Option<Output>,
}

impl Stdio {
    /// Which channels the guest is to keep for us. A terminal has one output.
    pub fn streams(&self) -> Streams {
        Streams {
            stdin: !self.stdin.is_empty(),
            stdout: !self.stdout.is_empty(),
            stderr: !self.stderr.is_empty() && !self.terminal,
            ..Default::default()
        }
    }

    /// Opens what is named. Never waits for a peer.
    pub fn open(&self, namespace: &Identifier, container: &Identifier) -> Result<Opened, StdioError> {
        let stdin = Endpoint::parse(&self.stdin)?;
        let stdout = Endpoint::parse(&self.stdout)?;
        let stderr = if self.terminal { Endpoint::Null } else { Endpoint::parse(&self.stderr)? };
        let stdin = match stdin {
            Endpoint::Null => None,
            Endpoint::Fifo(path) => Some(path),
            Endpoint::File(_) | Endpoint::Logger(_) => return Err(StdioError::NotAnInput(self.stdin.clone())),
        };
        let [stdout, stderr] = output::open([stdout, stderr], namespace, container)?;
        Ok(Opened { stdin, stdout, stderr })
    }
}

impl Opened {
    /// Opens the guest's ends with `connect` and begins to copy.
    pub async fn connect<C, F, E>(self, hello: &Hello, connect: C) -> Result<Copies, E>
    where
        C: Fn(Hello) -> F,
        F: Future<Output = Result<UnixStream, E>>,
    {
        let stream = |channel, wanted: bool| {
            let stream = wanted.then(|| connect(Hello { channel, ..hello.clone() }));
            async move {
                match stream {
                    Some(stream) => stream.await.map(Some),
                    None => Ok(None),
                }
            }
        };
        let (stdin, stdout, stderr) = tokio::try_join!(
            stream(Channel::Stdin, self.stdin.is_some()),
            stream(Channel::Stdout, self.stdout.is_some()),
            stream(Channel::Stderr, self.stderr.is_some()),
        )?;
        let copies = Copies::default();
        *lock(&copies.waiting_input) = self.stdin.zip(stdin);
        for (channel, output, stream) in
            [(Channel::Stdout, self.stdout, stdout), (Channel::Stderr, self.stderr, stderr)]
        {
            if let (Some(output), Some(stream)) = (output, stream) {
                copies.start_output(channel, output, stream);
            }
        }
        Ok(copies)
    }
}

/// The copying tasks of one process. They end when this is dropped.
#[derive(Debug, Default)]
pub struct Copies {
    /// stdin's FIFO and stream, until the process starts.
    waiting_input: Mutex<Option<(PathBuf, UnixStream)>>,
    /// Keeps stdin from ending while no client is connected; dropped by `CloseIO`.
    writer: Mutex<Option<InputWriter>>,
    input: Mutex<Option<AbortHandle>>,
    outputs: Mutex<Vec<AbortHandle>>,
    progress: watch::Sender<Vec<Progress>>,
}

/// How far one output has come.
#[derive(Debug)]
struct Progress {
    channel: Channel,
    /// Bytes that were written to the node's end.
    delivered: u64,
    fifo: Weak<Fifo>,
    ended: bool,
}

/// How much of each output is waited for, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Awaited {
    pub stdout: u64,
    pub stderr: u64,
}

impl Awaited {
    /// All of it: up to the channels' ends.
    pub const END: Self = Self { stdout: u64::MAX, stderr: u64::MAX };

    pub const NOTHING: Self = Self { stdout: 0, stderr: 0 };

    fn is_met(&self, output: &Progress) -> bool {
        output.ended || self.missing(output) == 0
    }

    fn missing(&self, output: &Progress) -> u64 {
        let bytes = if output.channel == Channel::Stderr { self.stderr } else { self.stdout };
        bytes.saturating_sub(output.delivered)
    }
}

impl Copies {
    /// Begins to copy stdin. Not before the process is to start: clients write once the FIFO is opened, and a client
    /// that comes to its input's end before it knows of the process (`ctr`) has nothing to call `CloseIO` on.
    pub fn begin_input(&self) -> Result<(), StdioError> {
        let Some((path, stream)) = lock(&self.waiting_input).take() else { return Ok(()) };
        let (input, writer) = input::open(&path)?;
        *lock(&self.writer) = Some(writer);
        let task = tokio::spawn(async move {
            if let Err(error) = input.copy(stream).await {
                tracing::debug!(%error, "stdin ended early");
            }
        });
        *lock(&self.input) = Some(task.abort_handle());
        Ok(())
    }

    fn start_output(&self, channel: Channel, output: Output, stream: UnixStream) {
        let (mut index, fifo) = (0, output.fifo());
        self.progress.send_modify(|outputs| {
            index = outputs.len();
            outputs.push(Progress { channel, delivered: 0, fifo, ended: false });
        });
        let report = Report { progress: self.progress.clone(), index };
        let task = tokio::spawn(async move {
            if let Err(error) = output.copy(stream, |bytes| report.delivered(bytes)).await {
                tracing::warn!(?channel, %error, "output ended early");
            }
        });
        lock(&self.outputs).push(task.abort_handle());
    }

    /// Lets stdin end once the clients' writers are closed, too. May be called again.
    pub fn close_stdin(&self) {
        lock(&self.writer).take();
    }

    /// Waits until output has been read at the node's ends, up to `awaited` or its end. False: it has not within `limit`.
    pub async fn drained(&self, awaited: Awaited, limit: Duration) -> bool {
        let mut progress = self.progress.subscribe();
        let read = async {
            let written = progress.wait_for(|outputs| outputs.iter().all(|output| awaited.is_met(output))).await;
            let fifos = |outputs: &Vec<Progress>| outputs.iter().filter_map(|output| output.fifo.upgrade()).collect();
            let fifos: Vec<Arc<Fifo>> = written.map_or_else(|_| Vec::new(), |outputs| fifos(&outputs));
            for fifo in fifos {
                fifo.taken().await;
            }
        };
        tokio::time::timeout(limit, read).await.is_ok()
    }

    /// How many bytes of `written` have not reached the node's ends.
    pub fn missing(&self, written: Awaited) -> u64 {
        self.progress.borrow().iter().fold(0, |sum, output| written.missing(output).saturating_add(sum))
    }

    /// Stops reading stdin: nobody in the guest reads it any more.
    pub fn stop_input(&self) {
        lock(&self.waiting_input).take();
        self.close_stdin();
        if let Some(task) = lock(&self.input).take() {
            task.abort();
        }
    }

    /// Closes everything, whatever is still on its way.
    pub fn stop(&self) {
        self.stop_input();
        for task in lock(&self.outputs).drain(..) {
            task.abort();
        }
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Tells of one output's progress, and of its end however its task ends.
struct Report {
    progress: watch::Sender<Vec<Progress>>,
    index: usize,
}

impl Report {
    fn delivered(&self, bytes: usize) {
        self.change(|output| output.delivered = output.delivered.saturating_add(bytes as u64));
    }

    fn change(&self, change: impl FnMut(&mut Progress)) {
        self.progress.send_modify(|outputs| outputs.get_mut(self.index).into_iter().for_each(change));
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.change(|output| output.ended = true);
    }
}

/// What is locked here is whole at any time, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
