//! The node's kernel as a witness: events counted, or listed with their times, while something runs.
//!
//! Counting costs instructions of its own: nothing is timed meanwhile that shall be compared with other rows.

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::time::{ClockId, clock_gettime};
use std::fs;
use std::path::Path;
use std::time::Duration;

const TRACEFS: &str = "/sys/kernel/tracing";

fn write(file: &str, text: &str) -> Result<()> {
    fs::write(Path::new(TRACEFS).join(file), text).with_context(|| format!("cannot write `{text}` to {file}"))
}

fn read(file: &str) -> Result<String> {
    fs::read_to_string(Path::new(TRACEFS).join(file)).with_context(|| format!("cannot read {file}"))
}

fn mounted() -> Result<()> {
    if !Path::new(TRACEFS).join("trace").exists() {
        mount(Some("tracefs"), TRACEFS, Some("tracefs"), MsFlags::empty(), None::<&str>).context("tracefs")?;
    }
    Ok(())
}

/// How often `event` (`kvm/kvm_exit`) came while `work` ran, by the value of `key`.
pub fn count<T>(event: &str, key: &str, work: impl FnOnce() -> Result<T>) -> Result<(T, Vec<(String, u32)>)> {
    mounted()?;
    let trigger = format!("events/{event}/trigger");
    let histogram = format!("hist:keys={key}");
    write(&trigger, &histogram)?;
    let done = work();
    let counts = read(&format!("events/{event}/hist"));
    write(&trigger, &format!("!{histogram}"))?;
    Ok((done?, parse_histogram(&counts?)))
}

/// Lines such as `{ exit_reason:        120 } hitcount:         12`.
fn parse_histogram(text: &str) -> Vec<(String, u32)> {
    let line = |line: &str| {
        let (key, count) = line.strip_prefix('{')?.split_once('}')?;
        let (_, key) = key.split_once(':')?;
        let count = count.trim().strip_prefix("hitcount:")?.trim().parse().ok()?;
        Some((key.trim().to_owned(), count))
    };
    text.lines().filter_map(line).collect()
}

/// A program that was executed.
#[derive(Debug, PartialEq)]
struct Execution {
    at: Duration,
    program: String,
}

/// A line such as `runc-12 [000] ..... 12.000345: sched_process_exec: filename=/usr/bin/runc pid=12 old_pid=12`.
fn parse_execution(line: &str) -> Option<Execution> {
    let event = ": sched_process_exec: filename=";
    let (at, (_, tail)) = (time(line, event)?, line.split_once(event)?);
    Some(Execution { at, program: tail.split_whitespace().next()?.to_owned() })
}

/// A process that ran a program.
#[derive(Debug, PartialEq)]
pub struct Life {
    pub pid: u32,
    pub program: String,
    pub start: Duration,
    /// None for one that runs still.
    pub end: Option<Duration>,
}

/// Every program that was executed while `work` ran, with its process's end.
pub fn lives<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Vec<Life>)> {
    mounted()?;
    write("trace_clock", "mono")?;
    write("trace", "")?;
    let events = ["sched_process_exec", "sched_process_exit"].map(|event| format!("events/sched/{event}/enable"));
    events.iter().try_for_each(|event| write(event, "1"))?;
    let done = work();
    events.iter().try_for_each(|event| write(event, "0"))?;
    let list = read("trace")?;
    Ok((done?, parse_lives(&list)))
}

fn parse_lives(text: &str) -> Vec<Life> {
    let mut lives: Vec<Life> = Vec::new();
    for line in text.lines() {
        let pid = |line: &str| line.split(" pid=").nth(1)?.split_whitespace().next()?.parse::<u32>().ok();
        let Some(pid) = pid(line) else { continue };
        let alive = lives.iter_mut().rev().find(|life| life.pid == pid && life.end.is_none());
        if let Some(Execution { at, program }) = parse_execution(line) {
            if let Some(life) = alive {
                life.end = Some(at);
            }
            lives.push(Life { pid, program, start: at, end: None });
        } else if let (Some(life), Some(at)) = (alive, time(line, ": sched_process_exit:")) {
            life.end = Some(at);
        }
    }
    lives
}

/// When an event came: the word before its name.
fn time(line: &str, event: &str) -> Option<Duration> {
    let (head, _) = line.split_once(event)?;
    let (seconds, micros) = head.split_whitespace().next_back()?.split_once('.')?;
    Some(Duration::from_secs(seconds.parse().ok()?) + Duration::from_micros(micros.parse().ok()?))
}

/// The monotonic clock.
pub fn now() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC)?.into())
}

#[cfg(test)]
mod tests {
    use super::{Life, parse_histogram, parse_lives};
    use std::time::Duration;

    #[test]
    fn histograms_are_read() {
        let text = "# event histogram\n\n{ exit_reason:        120 } hitcount:         12\n\nTotals:\n    Hits: 12\n";
        assert_eq!(parse_histogram(text), [("120".to_owned(), 12)]);
    }

    #[test]
    fn a_process_lives_from_its_execution_to_the_next_or_its_end() {
        let text = "# tracer: nop
   runc-12      [000] .....    12.000345: sched_process_exec: filename=/usr/bin/runc pid=12 old_pid=12
   runc-12      [000] .....    12.000350: sched_process_exec: filename=/bin/sleep pid=12 old_pid=12
   runc-13      [000] .....    12.000360: sched_process_exec: filename=/bin/true pid=13 old_pid=13
   true-13      [000] .....    12.000400: sched_process_exit: comm=true pid=13 prio=120\n";
        let life = |pid, program: &str, start, end: Option<u64>| {
            let end = end.map(Duration::from_micros);
            Life { pid, program: program.to_owned(), start: Duration::from_micros(start), end }
        };
        let expected = [
            life(12, "/usr/bin/runc", 12_000_345, Some(12_000_350)),
            life(12, "/bin/sleep", 12_000_350, None),
            life(13, "/bin/true", 12_000_360, Some(12_000_400)),
        ];
        assert_eq!(parse_lives(text), expected);
    }
}
