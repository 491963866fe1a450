//! The agent's end of a pipe that a process writes to, and how many bytes went through it.
//!
//! A process's end is told together with how much it had written: the shim can wait for just that, whoever else
//! still holds the pipe open.

#![expect(unsafe_code, reason = "FIONREAD, which nix does not wrap")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::unix::pipe;

/// Read through a reference.
#[derive(Debug)]
pub(super) struct OutputPipe {
    receiver: pipe::Receiver,
    taken: Arc<AtomicU64>,
}

/// Counts what was written to a pipe, without keeping it open: its writers are to notice when nobody reads any more.
#[derive(Debug)]
pub(super) struct Meter {
    pipe: Weak<OutputPipe>,
    taken: Arc<AtomicU64>,
}

impl OutputPipe {
    pub fn new(reader: OwnedFd) -> io::Result<(Arc<Self>, Meter)> {
        let taken = Arc::new(AtomicU64::new(0));
        let pipe = Arc::new(Self { receiver: pipe::Receiver::from_owned_fd(reader)?, taken: Arc::clone(&taken) });
        let meter = Meter { pipe: Arc::downgrade(&pipe), taken };
        Ok((pipe, meter))
    }

    /// Bytes that wait in the pipe.
    fn waiting(&self) -> u64 {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the descriptor is open as long as `self`, and FIONREAD writes one int.
        let result = unsafe { libc::ioctl(self.receiver.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
        if result == 0 { u64::from(bytes.unsigned_abs()) } else { 0 }
    }
}

impl Meter {
    /// Bytes written so far. One thread reads and counts, so none is on its way between the two numbers.
    pub fn written(&self) -> u64 {
        let waiting = self.pipe.upgrade().map_or(0, |pipe| pipe.waiting());
        self.taken.load(Ordering::Relaxed).saturating_add(waiting)
    }
}

impl AsyncRead for &OutputPipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.receiver.poll_read_ready(cx))?;
            match self.receiver.try_read(buf.initialize_unfilled()) {
                Ok(length) => {
                    buf.advance(length);
                    self.taken.fetch_add(length as u64, Ordering::Relaxed);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}
