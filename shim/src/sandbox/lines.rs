//! Log lines of the sandbox's processes and of the guest's console, forwarded to the shim's log.
//!
//! Whoever writes them may be hostile: lines are cut, control characters are blanked, and what comes too fast is dropped
//! and counted. The pipe is always read, so that a writer never waits for the log.

mod budget;

use super::SandboxError;
use super::agent::printable;
use budget::{Budget, Verdict};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::Level;

/// Longest line, in bytes; the rest of a longer one is dropped.
const MAX_LINE: usize = 1024;

/// Ordinary lines: so many at once, then ten a second.
const BURST: u32 = 200;
const INTERVAL: Duration = Duration::from_millis(100);

/// A kernel that boots with all its messages writes a few hundred.
const DEBUG_BURST: u32 = 1000;

/// Lines that must not drown in ordinary ones have a budget of their own, which is small: a guest can write them too.
const URGENT_BURST: u32 = 50;
const URGENT_INTERVAL: Duration = Duration::from_secs(1);

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

/// Who writes the lines.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// A process of the sandbox: `LEVEL text`.
    Program(&'static str),
    /// The guest: its kernel's log. `debug`: someone wants to read all of it.
    Console { debug: bool },
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Program(name) => name,
            Self::Console { .. } => "console",
        }
    }

    fn budget(self, now: Instant) -> Budget {
        let burst = if let Self::Console { debug: true } = self { DEBUG_BURST } else { BURST };
        Budget::new(burst, INTERVAL, now)
    }

    /// How loud a line is, and what of it is told.
    fn classify(self, line: &str) -> (Level, &str) {
        match (self, line.split_once(' ')) {
            (Self::Console { debug }, _) => (console_level(line, debug), line),
            (_, Some(("ERROR", text))) => (Level::ERROR, text),
            (_, Some(("WARN", text))) => (Level::WARN, text),
            (_, Some(("INFO", text))) => (Level::INFO, text),
            (_, Some(("DEBUG" | "TRACE", text))) => (Level::DEBUG, text),
            _ => (Level::INFO, line),
        }
    }
}

/// The node's log is not the guest's: only what ends a guest, or its agent's complaints, is for the operator.
fn console_level(line: &str, debug: bool) -> Level {
    let has = |marks: &[&str]| marks.iter().any(|mark| line.contains(mark));
    // Without `debug` the kernel shows errors only, so that what the agent says there is one.
    match debug {
        _ if has(&["Kernel panic", "Oops", "BUG:", "the agent panicked"]) => Level::WARN,
        false if has(&["bulkhead-agent: "]) => Level::WARN,
        false => Level::DEBUG,
        true => Level::INFO,
    }
}

/// Forwards the pipe's lines until its last writer is gone.
pub(super) fn forward(pipe: OwnedFd, source: Source) -> Result<Forwarding, SandboxError> {
    let mut pipe = Receiver::from_owned_fd(pipe).map_err(SandboxError::host("read the log of the", source.name()))?;
    let last_error = Arc::new(Mutex::new(None));
    let mut forwarder = Forwarder::new(source, Arc::clone(&last_error), Instant::now());
    let task = tokio::spawn(async move {
        let mut lines = Lines::default();
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut chunk).await {
            for line in lines.push(&chunk[..length]) {
                forwarder.take(&line, Instant::now());
            }
        }
        forwarder.end();
    });
    Ok(Forwarding { last_error, task })
}

struct Forwarder {
    source: Source,
    ordinary: Budget,
    urgent: Budget,
    last_error: Arc<Mutex<Option<String>>>,
}

impl Forwarder {
    fn new(source: Source, last_error: Arc<Mutex<Option<String>>>, now: Instant) -> Self {
        let urgent = Budget::new(URGENT_BURST, URGENT_INTERVAL, now);
        Self { source, ordinary: source.budget(now), urgent, last_error }
    }

    fn take(&mut self, line: &str, now: Instant) {
        let (level, text) = self.source.classify(line);
        if level == Level::ERROR
            && let Ok(mut kept) = self.last_error.lock()
        {
            *kept = Some(text.to_owned());
        }
        let budget = if level <= Level::WARN { &mut self.urgent } else { &mut self.ordinary };
        match budget.spend(now) {
            Verdict::Drop => return,
            Verdict::Forward => {}
            Verdict::ForwardAfter(dropped) => self.report(dropped),
        }
        let source = self.source.name();
        match level {
            Level::ERROR => tracing::error!(source, "{text}"),
            Level::WARN => tracing::warn!(source, "{text}"),
            Level::INFO => tracing::info!(source, "{text}"),
            _ => tracing::debug!(source, "{text}"),
        }
    }

    fn end(&mut self) {
        let dropped = self.ordinary.dropped().saturating_add(self.urgent.dropped());
        if dropped > 0 {
            self.report(dropped);
        }
    }

    fn report(&self, dropped: u32) {
        tracing::warn!(source = self.source.name(), dropped, "lines came too fast");
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
    fn a_guest_is_loud_only_when_it_breaks() {
        let level = |line, debug| Source::Console { debug }.classify(line).0;
        for line in [
            "[    1.2] Kernel panic - not syncing: no init",
            "[    1.2] Oops: general protection fault",
            "[    1.2] BUG: unable to handle page fault",
            "[    1.2] bulkhead-agent: the agent panicked",
        ] {
            assert_eq!([level(line, false), level(line, true)], [Level::WARN; 2], "{line}");
        }
        let agent = "[    1.2] bulkhead-agent: cannot mount /x";
        assert_eq!([level(agent, false), level(agent, true)], [Level::WARN, Level::INFO]);
        // It claims to be a process's line.
        let other = "ERROR [    1.2] random: crng init done";
        assert_eq!([level(other, false), level(other, true)], [Level::DEBUG, Level::INFO]);
    }

    #[test]
    fn a_panic_does_not_drown() {
        let now = Instant::now();
        let mut forwarder = Forwarder::new(Source::Console { debug: false }, Arc::default(), now);
        for _ in 0..2 * BURST {
            forwarder.take("noise", now);
        }
        assert_eq!(forwarder.ordinary.spend(now), Verdict::Drop);
        assert_eq!(forwarder.urgent.spend(now), Verdict::Forward);
    }

    #[test]
    fn the_last_error_of_a_process_is_kept_even_when_it_is_not_told() {
        let now = Instant::now();
        let kept = Arc::default();
        let mut forwarder = Forwarder::new(Source::Program("VMM"), Arc::clone(&kept), now);
        for number in 0..=URGENT_BURST {
            forwarder.take(&format!("ERROR number {number}"), now);
        }
        assert_eq!(kept.lock().unwrap().as_deref(), Some("number 50"));
    }
}
