//! The pipe that takes the guest kernel's log.
//!
//! The guest must neither wait for the reader nor fill the node's disk with its log. So bytes are dropped when the
//! pipe is full or the guest has used up its rate, and the log says where and how many.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::write;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Longest line, in bytes: a longer one is broken, so that a reader of lines needs only bounded memory.
pub const MAX_LINE: usize = 2048;

/// Bytes that a guest may log at once: several times what a kernel says in its boot.
pub const BURST: usize = 1024 * 1024;

/// Bytes a second that a guest may log over time.
pub const RATE: usize = 16 * 1024;

/// The writing side of the log.
#[derive(Debug)]
pub struct Log {
    pipe: OwnedFd,
    /// Length of the line that is being written.
    column: usize,
    dropped: usize,
    budget: Budget,
}

impl Log {
    pub fn new(pipe: OwnedFd) -> Self {
        Self { pipe, column: 0, dropped: 0, budget: Budget::new(Instant::now()) }
    }

    /// Makes the pipe non-blocking.
    pub fn never_wait(&self) -> io::Result<()> {
        let flags = OFlag::from_bits_retain(fcntl(&self.pipe, FcntlArg::F_GETFL)?);
        fcntl(&self.pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(())
    }

    /// Writes bytes of the guest. False when some were dropped instead.
    pub fn write(&mut self, bytes: &[u8], now: Instant) -> bool {
        if !self.budget.take(bytes.len(), now) || !self.tell_dropped() {
            self.drop_bytes(bytes.len());
            return false;
        }
        let lines = break_lines(bytes, self.column);
        let written = self.send(&lines);
        self.column = column_after(&lines[..written], self.column);
        self.drop_bytes(lines.len() - written);
        written == lines.len()
    }

    /// Counts bytes that were not written.
    pub fn drop_bytes(&mut self, count: usize) {
        self.dropped = self.dropped.saturating_add(count);
    }

    /// Says what is missing, on a line of its own. True when nothing is left to be said.
    fn tell_dropped(&mut self) -> bool {
        if self.dropped == 0 {
            return true;
        }
        let newline = if self.column == 0 { "" } else { "\n" };
        let notice = format!("{newline}[{} bytes of this log were dropped]\n", self.dropped);
        // A pipe takes so short a text whole or not at all.
        if self.send(notice.as_bytes()) < notice.len() {
            return false;
        }
        self.dropped = 0;
        self.column = 0;
        true
    }

    /// Writes as much as the pipe takes now.
    fn send(&self, bytes: &[u8]) -> usize {
        loop {
            match write(&self.pipe, bytes) {
                Err(Errno::EINTR) => {}
                // A full pipe, or a reader that is gone: the log has no other place to go.
                other => return other.unwrap_or(0),
            }
        }
    }
}

/// Ends each line after [`MAX_LINE`] bytes at the latest. The first line is `column` bytes long already.
fn break_lines(bytes: &[u8], mut column: usize) -> Vec<u8> {
    let mut lines = Vec::with_capacity(bytes.len() + bytes.len() / MAX_LINE + 1);
    for &byte in bytes {
        if column == MAX_LINE && byte != b'\n' {
            lines.push(b'\n');
            column = 0;
        }
        lines.push(byte);
        column = if byte == b'\n' { 0 } else { column + 1 };
    }
    lines
}

/// Length of the unfinished line after `written`, where `column` was the length before.
fn column_after(written: &[u8], column: usize) -> usize {
    match written.iter().rposition(|byte| *byte == b'\n') {
        Some(newline) => written.len() - newline - 1,
        None => column + written.len(),
    }
}

/// A token bucket: [`BURST`] at first, refilled at [`RATE`].
#[derive(Debug)]
struct Budget {
    bytes: usize,
    filled: Instant,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self { bytes: BURST, filled: now }
    }

    fn take(&mut self, wanted: usize, now: Instant) -> bool {
        let seconds = now.saturating_duration_since(self.filled).as_secs();
        if seconds > 0 {
            let earned = usize::try_from(seconds).unwrap_or(usize::MAX).saturating_mul(RATE);
            self.bytes = self.bytes.saturating_add(earned).min(BURST);
            self.filled += Duration::from_secs(seconds);
        }
        let allowed = wanted <= self.bytes;
        if allowed {
            self.bytes -= wanted;
        }
        allowed
    }
}
