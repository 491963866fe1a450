//! One pod's start on a timeline: what the shim, the VMM and the guest did, and when.
//!
//! Off unless the node's configuration has `trace = true`; then nothing here reads a clock, but `start` once. A shim serves one pod, so there is
//! one trace for each process. It is written into the pod's directory, in Chrome's format, and goes with the pod.
//!
//! ```text
//!  start ── environment ──► serve: begin ──► span() … span() ──► save() after a pod was made and a container made or started
//!                                             ▲ VMM's moments: the node's clock, kept within the call that told them
//!                                             ▲ guest's moments: the guest's clock, moved, and kept within the call
//! ```

mod chrome;
mod moments;

pub use moments::{guest, vmm};

use nix::time::{ClockId, clock_gettime};
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// How `start` tells its daemon that the pod is traced, and when it began and ended itself.
pub const ENVIRONMENT: &str = "BULKHEAD_TRACE";

/// In a pod's directory.
pub const FILE: &str = "trace.json";

/// Most spans of a pod, and the longest name: a trace is for starts, and shall not grow with a pod's life.
const MAX_SPANS: usize = 1024;
const MAX_NAME: usize = 64;

/// The rows of the timeline. Containers have a row each, since several may be made at once.
pub const SHIM: &str = "shim";
pub const VMM: &str = "vmm";
pub const GUEST: &str = "guest";

static TRACE: OnceLock<Mutex<Trace>> = OnceLock::new();

#[derive(Debug, Default)]
struct Trace {
    spans: Vec<Recorded>,
    path: Option<PathBuf>,
}

/// From when to when, in nanoseconds of the node's monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Recorded {
    row: Cow<'static, str>,
    name: Cow<'static, str>,
    start: u64,
    end: u64,
}

/// The node's monotonic clock.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| time.tv_sec() * 1_000_000_000 + time.tv_nsec());
    time.try_into().unwrap_or_default()
}

/// What `start` leaves in its daemon's environment.
pub fn environment(began: u64) -> (&'static str, String) {
    (ENVIRONMENT, format!("{began} {}", now()))
}

/// Begins a trace if this process's environment asks for one.
pub fn begin_if_asked() {
    let Ok(text) = std::env::var(ENVIRONMENT) else { return };
    let numbers: Vec<u64> = text.split(' ').filter_map(|number| number.parse().ok()).collect();
    let &[began, ended] = numbers.as_slice() else { return };
    if TRACE.set(Mutex::default()).is_ok() {
        add(SHIM, "start", began, ended);
        add(SHIM, "daemon's program", ended, now());
    }
}

/// Whether this process's pod is traced.
pub fn is_on() -> bool {
    TRACE.get().is_some()
}

/// Where the trace is to be written.
pub fn save_in(directory: &Path) {
    if let Some(mut trace) = trace() {
        trace.path = Some(directory.join(FILE));
    }
}

/// Writes what there is by now.
pub fn save() {
    let Some(trace) = trace() else { return };
    let Some(path) = &trace.path else { return };
    let unfinished = path.with_extension("new");
    let written =
        std::fs::write(&unfinished, chrome::encode(&trace.spans)).and_then(|()| std::fs::rename(&unfinished, path));
    if let Err(error) = written {
        tracing::warn!(path = %path.display(), %error, "the trace is not written");
    }
}

fn trace() -> Option<MutexGuard<'static, Trace>> {
    TRACE.get().map(|trace| trace.lock().unwrap_or_else(PoisonError::into_inner))
}

fn add(row: impl Into<Cow<'static, str>>, name: impl Into<Cow<'static, str>>, start: u64, end: u64) {
    let Some(mut trace) = trace() else { return };
    if trace.spans.len() < MAX_SPANS {
        trace.spans.push(Recorded { row: row.into(), name: name.into(), start, end: end.max(start) });
    }
}

/// Work that lasts until this value is dropped.
#[derive(Debug)]
#[must_use = "it ends when it is dropped"]
pub struct Span(Option<Recorded>);

/// Begins one.
pub fn span(row: &'static str, name: &'static str) -> Span {
    Span(TRACE.get().map(|_| Recorded { row: row.into(), name: name.into(), start: now(), end: 0 }))
}

/// Begins one in a container's row.
pub fn container_span(container: &str, name: &'static str) -> Span {
    Span(TRACE.get().map(|_| Recorded { row: row_of(container).into(), name: name.into(), start: now(), end: 0 }))
}

fn row_of(container: &str) -> String {
    format!("container {}", container.chars().take(MAX_NAME).collect::<String>())
}

impl Span {
    /// When it began; 0 without a trace.
    pub fn start(&self) -> u64 {
        self.0.as_ref().map_or(0, |span| span.start)
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(Recorded { row, name, start, .. }) = self.0.take() {
            add(row, name, start, now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_trace_nothing_is_kept() {
        let span = span(SHIM, "sandbox");
        assert_eq!(span.start(), 0);
        drop(span);
        assert!(trace().is_none());
    }
}
