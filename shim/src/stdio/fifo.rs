//! The writing end of a FIFO that a client reads, or of a logger's pipe.
//!
//! The client library of containerd 1.7 (`ctr`) closes its end when it hears of an exit, whatever is left in the FIFO:
//! what was written is safe only once it was read.

#![expect(unsafe_code, reason = "FIONREAD, which nix does not wrap")]

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::net::unix::pipe::{OpenOptions, Sender};

/// Between two looks at what the reader has left, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub struct Fifo {
    sender: Sender,
    /// A reading end of ours: a reader that goes away and comes back (a restart of containerd) sees no end, and we no
    /// error. Nothing is read from it. A logger's pipe has none.
    keeper: Mutex<Option<File>>,
}

impl Fifo {
    /// No reader is needed to open it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let keeper = open_keeper(path)?;
        let sender = OpenOptions::new().open_sender(path)?;
        Ok(Self { sender, keeper: Mutex::new(Some(keeper)) })
    }

    /// Writes what fits, when something does.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.sender.writable().await?;
            match self.sender.try_write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    /// Moves up to `most` bytes from a stream, without a copy. They take up pages: for long pieces only.
    pub async fn splice(&self, stream: &UnixStream, most: usize) -> io::Result<usize> {
        loop {
            self.sender.writable().await?;
            stream.readable().await?;
            let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
            match splice(stream, None, &self.sender, None, most, flags) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => return Ok(length),
                Err(Errno::EAGAIN) => self.forget_readiness(stream)?,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whichever end had the call fail is waited for. The kernel does not tell which it was, and neither may be taken for the
    /// other: its next event would never come.
    fn forget_readiness(&self, stream: &UnixStream) -> io::Result<()> {
        let unless_blocked = |result: io::Result<()>| match result {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        };
        // Asked within, so that an event that comes meanwhile counts.
        unless_blocked(stream.try_io(Interest::READABLE, || ready(stream, PollFlags::POLLIN)))?;
        unless_blocked(self.sender.try_io(|| ready(&self.sender, PollFlags::POLLOUT)))
    }

    /// Waits until everything has been read, or nobody is there to read it.
    pub async fn taken(&self) {
        let mut pause = FIRST_PAUSE;
        while self.unread() > 0 && self.has_reader() {
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(2 * pause);
        }
    }

    fn unread(&self) -> u64 {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the descriptor is open as long as `self`, and FIONREAD writes one int.
        let result = unsafe { libc::ioctl(self.sender.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
        if result == 0 { u64::from(bytes.unsigned_abs()) } else { 0 }
    }

    /// Whether somebody else has it open for reading. The kernel tells a writer when no reader is left: so ours leaves
    /// for the question. Nothing is written meanwhile, since the shim has one thread.
    fn has_reader(&self) -> bool {
        let mut keeper = super::lock(&self.keeper);
        let kept = keeper.take().is_some();
        let mut ends = [PollFd::new(self.sender.as_fd(), PollFlags::empty())];
        let alone = poll(&mut ends, PollTimeout::ZERO).is_ok()
            && ends[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR));
        if kept {
            // Without it, the writer learns that the last reader left: the output ends early, as with a logger.
            *keeper = open_keeper(format!("/proc/self/fd/{}", self.sender.as_raw_fd()).as_ref()).ok();
        }
        !alone
    }
}

impl From<Sender> for Fifo {
    fn from(sender: Sender) -> Self {
        Self { sender, keeper: Mutex::new(None) }
    }
}

/// `WouldBlock` if nothing of the kind can be done now.
fn ready(end: &impl AsFd, events: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(end.as_fd(), events)], PollTimeout::ZERO)? {
        0 => Err(ErrorKind::WouldBlock.into()),
        _ => Ok(()),
    }
}

fn open_keeper(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}
