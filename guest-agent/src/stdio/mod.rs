//! Standard streams of one process, from its birth until it is deleted.
//!
//! Pipes exist before the process does, a terminal only once crun has made it. The shim attaches to a channel
//! when it likes, once: before the start or long after the end. What nobody reads stays in the kernel's buffer,
//! which is the back-pressure. Deleting the process drops this, and with it every pump.

mod output;
mod pump;
mod terminal;

pub use terminal::{ConsoleSocket, Terminal};

use crate::crun::ProcessStreams;
use crate::error::Error;
use agent_protocol::stream::Channel;
use nix::fcntl::OFlag;
use output::{Meter, OutputPipe};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Which channels the shim will attach to; the process gets /dev/null for the others.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// The agent's side.
#[derive(Debug)]
pub struct Stdio {
    channels: Mutex<Channels>,
    stdout: Option<Meter>,
    stderr: Option<Meter>,
    terminal: Option<watch::Sender<Option<Arc<Terminal>>>>,
    pumps: Mutex<Vec<AbortHandle>>,
}

/// What has not been attached yet.
#[derive(Debug, Default)]
struct Channels {
    stdin: Option<Endpoint>,
    stdout: Option<Endpoint>,
    stderr: Option<Endpoint>,
}

#[derive(Debug)]
enum Endpoint {
    Input(pipe::Sender),
    Output(Arc<OutputPipe>),
    /// Of the terminal, whichever direction the channel has.
    Terminal(watch::Receiver<Option<Arc<Terminal>>>),
}

/// Bytes written to each pipe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    pub stdout: u64,
    pub stderr: u64,
}

/// A channel that was claimed for a connection, which may now be told so.
#[derive(Debug)]
pub struct Attachment(Endpoint, Channel);

impl Stdio {
    /// Pipes, and the process's ends of them.
    pub fn pipes(wanted: Wanted) -> Result<(Self, ProcessStreams), Error> {
        let failed = || Error::system("create", "a pipe");
        let mut channels = Channels::default();
        let mut ends = ProcessStreams::default();
        let (mut stdout, mut stderr) = (None, None);
        if wanted.stdin {
            let (reader, writer) = pipe_pair()?;
            channels.stdin = Some(Endpoint::Input(pipe::Sender::from_owned_fd(writer).map_err(failed())?));
            ends.stdin = Some(reader);
        }
        for (wanted, channel, end, meter) in [
            (wanted.stdout, &mut channels.stdout, &mut ends.stdout, &mut stdout),
            (wanted.stderr, &mut channels.stderr, &mut ends.stderr, &mut stderr),
        ] {
            if wanted {
                let (reader, writer) = pipe_pair()?;
                let (pipe, counter) = OutputPipe::new(reader).map_err(failed())?;
                *channel = Some(Endpoint::Output(pipe));
                *end = Some(writer);
                *meter = Some(counter);
            }
        }
        let channels = Mutex::new(channels);
        Ok((Self { channels, stdout, stderr, terminal: None, pumps: Mutex::default() }, ends))
    }

    /// A terminal, which `set_terminal` brings later.
    pub fn terminal(wanted: Wanted) -> Self {
        let (sender, receiver) = watch::channel(None);
        let endpoint = |wanted: bool| wanted.then(|| Endpoint::Terminal(receiver.clone()));
        let channels = Channels { stdin: endpoint(wanted.stdin), stdout: endpoint(wanted.stdout), stderr: None };
        let channels = Mutex::new(channels);
        let stdio = Self { channels, stdout: None, stderr: None, terminal: Some(sender), pumps: Mutex::default() };
        if !wanted.stdout {
            // A process must not stop at a full terminal that nobody is going to read.
            stdio.keep(tokio::spawn(pump::discard(receiver)).abort_handle());
        }
        stdio
    }

    pub fn set_terminal(&self, terminal: Terminal) {
        if let Some(sender) = &self.terminal {
            sender.send_replace(Some(Arc::new(terminal)));
        }
    }

    /// What was written so far to the pipes that are wanted.
    pub fn written(&self) -> Written {
        let written = |meter: &Option<Meter>| meter.as_ref().map_or(0, Meter::written);
        Written { stdout: written(&self.stdout), stderr: written(&self.stderr) }
    }

    /// Sets the terminal's size. Without a terminal, or with one whose process has ended, nothing happens.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<(), Error> {
        match self.terminal.as_ref().and_then(|sender| sender.borrow().clone()) {
            Some(terminal) => terminal.resize(columns, rows).map_err(Error::system("resize", "a terminal")),
            None => Ok(()),
        }
    }

    /// Claims a channel. There is one connection per channel: `None` if it has had its own, or never existed.
    pub fn attach(&self, channel: Channel) -> Option<Attachment> {
        let mut channels = self.channels.lock().expect("no holder panics");
        let slot = match channel {
            Channel::Stdin => &mut channels.stdin,
            Channel::Stdout => &mut channels.stdout,
            Channel::Stderr => &mut channels.stderr,
        };
        slot.take().map(|endpoint| Attachment(endpoint, channel))
    }

    /// Moves bytes between the channel and `stream` in the background, until either ends or this is dropped.
    pub fn run(&self, attachment: Attachment, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        self.keep(tokio::spawn(pump::run(attachment.0, attachment.1, stream)).abort_handle());
    }

    fn keep(&self, pump: AbortHandle) {
        self.pumps.lock().expect("no holder panics").push(pump);
    }
}

impl Drop for Stdio {
    fn drop(&mut self) {
        for pump in self.pumps.lock().expect("no holder panics").drain(..) {
            pump.abort();
        }
    }
}

fn pipe_pair() -> Result<(OwnedFd, OwnedFd), Error> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(Error::system("create", "a pipe"))
}

#[cfg(test)]
mod tests;
