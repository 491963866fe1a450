//! Spans of one start, as a file that trace viewers open (Chrome's trace events; chrome://tracing, ui.perfetto.dev).

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

/// Times are of the node's monotonic clock.
#[derive(Debug)]
pub struct Timeline {
    begin: Duration,
    /// Lanes by name, in the order of their numbers.
    lanes: BTreeMap<String, usize>,
    events: Vec<Value>,
}

impl Timeline {
    pub fn new(begin: Duration) -> Self {
        Self { begin, lanes: BTreeMap::new(), events: Vec::new() }
    }

    pub fn span(&mut self, lane: &str, name: &str, start: Duration, end: Duration) {
        let next = self.lanes.len() + 1;
        let lane = *self.lanes.entry(lane.to_owned()).or_insert(next);
        let start = start.max(self.begin);
        let length = end.saturating_sub(start);
        self.events.push(json!({
            "ph": "X", "pid": 1, "tid": lane, "name": name,
            "ts": micros(start - self.begin), "dur": micros(length),
        }));
    }

    /// Stages by their ends: each begins where the one before it ended.
    pub fn stages(&mut self, lane: &str, begin: Duration, ends: Vec<(String, Duration)>) {
        let mut begin = begin;
        for (name, end) in ends {
            self.span(lane, &name, begin, end);
            begin = end;
        }
    }

    pub fn write(&self, path: &str) -> Result<()> {
        let name = |(lane, number): (&String, &usize)| json!({ "ph": "M", "pid": 1, "tid": number, "name": "thread_name", "args": { "name": lane } });
        let events: Vec<Value> = self.lanes.iter().map(name).chain(self.events.iter().cloned()).collect();
        let text = json!({ "displayTimeUnit": "ns", "traceEvents": events }).to_string();
        fs::write(path, text).with_context(|| format!("cannot write {path}"))
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// A line of the guest kernel's log: its time since the guest's clock began, and what it says.
pub fn kernel_line(line: &str) -> Option<(Duration, &str)> {
    let (time, said) = line.trim_start().strip_prefix('[')?.split_once("] ")?;
    let (seconds, micros) = time.trim().split_once('.')?;
    Some((Duration::from_secs(seconds.parse().ok()?) + Duration::from_micros(micros.parse().ok()?), said.trim_end()))
}

/// `initcall NAME+0x0/0x10 returned 0 after 12 usecs`: the name, and how long it took.
pub fn initcall(said: &str) -> Option<(&str, Duration)> {
    let rest = said.strip_prefix("initcall ")?;
    let (name, rest) = rest.split_once(" returned ")?;
    let (_, after) = rest.split_once(" after ")?;
    let micros = after.split_whitespace().next()?.parse().ok()?;
    Some((name.split('+').next().unwrap_or(name), Duration::from_micros(micros)))
}

#[cfg(test)]
mod tests {
    use super::{Timeline, initcall, kernel_line};
    use std::time::Duration;

    #[test]
    fn the_kernels_log_has_spans_in_it() {
        let (at, said) =
            kernel_line("[    0.012345] initcall tcp_init+0x0/0x20 returned 0 after 40 usecs\r\n").unwrap();
        assert_eq!(at, Duration::from_micros(12_345));
        assert_eq!(initcall(said), Some(("tcp_init", Duration::from_micros(40))));
        assert_eq!(kernel_line("no time"), None);
        assert_eq!(initcall("Freeing memory"), None);
    }

    #[test]
    fn a_timeline_begins_at_nought() {
        let mut timeline = Timeline::new(Duration::from_secs(5));
        timeline.span("vmm", "boot", Duration::from_secs(4), Duration::from_millis(5250));
        assert_eq!(
            (timeline.events[0]["ts"].as_f64(), timeline.events[0]["dur"].as_f64()),
            (Some(0.0), Some(250_000.0))
        );
    }
}
