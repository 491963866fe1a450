//! Log lines of the sandbox's processes and of the guest's console, forwarded to the shim's log.
//!
//! Whoever writes them may be hostile: lines are cut, control characters are blanked, and what comes too fast is dropped
//! and counted. The pipe is always read, so that a writer never waits for the log.

use super::SandboxError;
use super::agent::printable;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Longest line, in bytes; the rest of a longer one is dropped.
const MAX_LINE: usize = 1024;

/// Lines that are forwarded in one [`WINDOW`]; a booting kernel with `debug` writes a few hundred.
const MAX_LINES: u32 = 1000;

const WINDOW: Duration = Duration::from_secs(5);

/// For what a process left in the pipe when it ended.
const REST: Duration = Duration::from_millis(200);

/// The lines of one pipe, being forwarded.
#[derive(Debug)]
pub(super) struct Forwarding {
    last_error: Arc<Mutex<Option<String>>>,
    task: JoinHandle<()>,
}

impl Forwarding {
    /// The last `ERROR` line of a process that has ended. What it wrote may still be in the pipe.
    pub async fn last_error(self) -> Option<String> {
        // Not for ever: a child of the process may hold the pipe.
        let _ = timeout(REST, self.task).await;
        self.last_error.lock().ok()?.take()
    }
}

/// Forwards the pipe's lines until its last writer is gone.
pub(super) fn forward(pipe: OwnedFd, source: &'static str) -> Result<Forwarding, SandboxError> {
    let mut pipe = Receiver::from_owned_fd(pipe).map_err(SandboxError::host("read the log of the", &source))?;
    let last_error = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&last_error);
    let task = tokio::spawn(async move {
        let mut lines = Lines::default();
        let mut budget = Budget::new(Instant::now());
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut chunk).await {
            for line in lines.push(&chunk[..length]) {
                match budget.spend(Instant::now()) {
                    Verdict::Forward => record(source, &line, &kept),
                    Verdict::Drop => {}
                    Verdict::ForwardAfter(dropped) => {
                        tracing::warn!(source, dropped, "lines came too fast");
                        record(source, &line, &kept);
                    }
                }
            }
        }
    });
    Ok(Forwarding { last_error, task })
}

fn record(source: &'static str, line: &str, last_error: &Mutex<Option<String>>) {
    match line.split_once(' ') {
        Some(("ERROR", text)) => {
            tracing::error!(source, "{text}");
            if let Ok(mut kept) = last_error.lock() {
                *kept = Some(text.to_owned());
            }
        }
        Some(("WARN", text)) => tracing::warn!(source, "{text}"),
        Some(("INFO", text)) => tracing::info!(source, "{text}"),
        Some(("DEBUG" | "TRACE", text)) => tracing::debug!(source, "{text}"),
        _ => tracing::info!(source, "{line}"),
    }
}

/// Splits a byte stream into lines of at most [`MAX_LINE`] bytes.
#[derive(Debug, Default)]
struct Lines {
    unfinished: Vec<u8>,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for &byte in bytes {
            if byte != b'\n' {
                if self.unfinished.len() < MAX_LINE {
                    self.unfinished.push(byte);
                }
                continue;
            }
            let line = printable(String::from_utf8_lossy(&self.unfinished).trim_end());
            self.unfinished.clear();
            if !line.is_empty() {
                lines.push(line);
            }
        }
        lines
    }
}

/// Counts lines per window of time.
#[derive(Debug)]
struct Budget {
    since: Instant,
    spent: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Forward,
    /// The first line after so many dropped ones.
    ForwardAfter(u32),
    Drop,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self { since: now, spent: 0 }
    }

    fn spend(&mut self, now: Instant) -> Verdict {
        let dropped = if now.saturating_duration_since(self.since) >= WINDOW {
            let spent = std::mem::take(&mut self.spent);
            self.since = now;
            spent.saturating_sub(MAX_LINES)
        } else {
            0
        };
        self.spent = self.spent.saturating_add(1);
        match (self.spent > MAX_LINES, dropped) {
            (true, _) => Verdict::Drop,
            (false, 0) => Verdict::Forward,
            (false, dropped) => Verdict::ForwardAfter(dropped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_joined_across_reads() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"one\ntw"), ["one"]);
        assert_eq!(lines.push(b"o\r\n\n"), ["two"]);
    }

    #[test]
    fn long_lines_are_cut_and_control_characters_blanked() {
        let mut lines = Lines::default();
        assert!(lines.push(&[b'x'; 3 * MAX_LINE]).is_empty());
        assert_eq!(lines.push(b"\n")[0].len(), MAX_LINE);
        assert_eq!(lines.push(b"a\x1b[31mb\xff\n"), ["a [31mb\u{fffd}"]);
    }

    #[test]
    fn a_flood_is_dropped_and_counted() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        for _ in 0..MAX_LINES {
            assert_eq!(budget.spend(start), Verdict::Forward);
        }
        assert_eq!(budget.spend(start), Verdict::Drop);
        assert_eq!(budget.spend(start), Verdict::Drop);
        assert_eq!(budget.spend(start + WINDOW), Verdict::ForwardAfter(2));
        assert_eq!(budget.spend(start + WINDOW), Verdict::Forward);
    }
}
