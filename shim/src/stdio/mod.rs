//! A process's standard streams on the node: what containerd names them, and the copying to and from the guest.
//!
//! Every channel has its own connection to the guest and its own task: whoever does not read stalls himself
//! alone. The tasks run until their channel ends, in-band; what a process left behind that holds the channel
//! open, and a reader who does not read, are bounded by whoever waits ([`Copies::drained`]).

mod endpoint;
mod input;
mod logger;
mod output;

pub use endpoint::{Endpoint, StdioError};

use crate::identifier::Identifier;
use agent_protocol::agent::Streams;
use agent_protocol::stream::{Channel, Hello};
use input::InputWriter;
use output::Output;
use std::path::PathBuf;
use std::sync::Mutex;
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
        for (output, stream) in [(self.stdout, stdout), (self.stderr, stderr)] {
            if let (Some(output), Some(stream)) = (output, stream) {
                copies.start_output(output, stream);
            }
        }
        Ok(copies)
    }
}

/// The copying tasks of one process. They end when this is dropped.
#[derive(Debug)]
pub struct Copies {
    /// stdin's FIFO and stream, until the process starts.
    waiting_input: Mutex<Option<(PathBuf, UnixStream)>>,
    /// Keeps stdin from ending while no client is connected; dropped by `CloseIO`.
    writer: Mutex<Option<InputWriter>>,
    input: Mutex<Option<AbortHandle>>,
    outputs: Mutex<Vec<AbortHandle>>,
    /// Outputs that have not ended.
    open: watch::Sender<usize>,
    /// Sent to whenever output reached the node's end.
    moved: watch::Sender<()>,
}

impl Default for Copies {
    fn default() -> Self {
        Self {
            waiting_input: Mutex::default(),
            writer: Mutex::default(),
            input: Mutex::default(),
            outputs: Mutex::default(),
            open: watch::Sender::new(0),
            moved: watch::Sender::new(()),
        }
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

    fn start_output(&self, output: Output, stream: UnixStream) {
        self.open.send_modify(|open| *open += 1);
        let (ended, moved) = (Ended(self.open.clone()), self.moved.clone());
        let task = tokio::spawn(async move {
            let _ended = ended;
            if let Err(error) = output.copy(stream, || moved.send_modify(|()| ())).await {
                tracing::debug!(%error, "output ended early");
            }
        });
        lock(&self.outputs).push(task.abort_handle());
    }

    /// Lets stdin end once the clients' writers are closed, too. May be called again.
    pub fn close_stdin(&self) {
        lock(&self.writer).take();
    }

    /// Waits until all output has reached the node's ends. False: it has not within `limit`.
    pub async fn drained(&self, limit: Duration) -> bool {
        let mut open = self.open.subscribe();
        tokio::time::timeout(limit, open.wait_for(|&open| open == 0)).await.is_ok()
    }

    /// The same, and gives up when nothing has moved for `quiet`: a slow reader gets all, an output that is held open
    /// for nothing costs little.
    pub async fn drained_while_moving(&self, quiet: Duration, limit: Duration) -> bool {
        let mut moved = self.moved.subscribe();
        // The sender lives as long as `self`.
        let still = async { while tokio::time::timeout(quiet, moved.changed()).await.is_ok() {} };
        tokio::select! {
            drained = self.drained(limit) => drained,
            () = still => false,
        }
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

/// Counts an output as ended, however its task ends.
struct Ended(watch::Sender<usize>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

/// What is locked here is whole at any time, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
