//! Many pods: what they cost while nothing happens, and pods that come and go.

use crate::sample::{tell, tell_time};
use crate::{memory, pods};
use anyhow::{Context, Result};
use e2e::cri::Pod;
use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Of the node's processors.
pub const STATISTICS: &str = "/proc/stat";

const PODS: u32 = 40;

const STARTS: u32 = 100;

/// What pods are given, in bytes.
const ROOM: f64 = 512.0 * memory::MIB;

/// When the node has no more than this, it is full: the kernel would begin to end processes.
const FULL: f64 = 32.0 * memory::MIB;

const SETTLE: Duration = Duration::from_secs(10);

/// How long idle pods are watched.
const WATCHED: Duration = Duration::from_secs(60);

/// Pods that fit into what is left when most of the node's memory is taken.
pub fn density(handler: &str) -> Result<()> {
    drop(pods::start(handler)?);
    let ballast = ballast(memory::available()? - ROOM);
    let mut pods: Vec<Pod> = Vec::new();
    while memory::available()? > FULL {
        pods.push(pods::start(handler)?);
    }
    tell("density", f64::from(u32::try_from(pods.len())?));
    drop(pods);
    drop(ballast);
    Ok(())
}

/// Memory of the node that nobody else gets.
fn ballast(bytes: f64) -> Vec<u8> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole bytes of a node's memory")]
    let length = bytes.max(0.0) as usize;
    // Written to, so that it is there.
    std::hint::black_box(vec![1; length])
}

/// Busy time of the node's processors with 40 pods, in per cent of one, less what it is without.
pub fn processor(handler: &str) -> Result<()> {
    let alone = busy()?;
    let pods: Vec<Pod> = (0..PODS).map(|_| pods::start(handler)).collect::<Result<_>>()?;
    tell("idle-processor", (busy()? - alone).max(f64::MIN_POSITIVE));
    drop(pods);
    Ok(())
}

/// The average time of a pod's start and removal, over many.
pub fn churn(handler: &str) -> Result<()> {
    let start = Instant::now();
    for _ in 0..STARTS {
        let pod = pods::start(handler)?;
        pod.stop()?;
        pod.remove()?;
    }
    tell_time("churn", start.elapsed() / STARTS);
    Ok(())
}

/// Per cent of one processor over some time.
fn busy() -> Result<f64> {
    std::thread::sleep(SETTLE);
    let statistics = fs::File::open(STATISTICS)?;
    let (start, before) = (Instant::now(), idle(&statistics)?);
    std::thread::sleep(WATCHED);
    let (time, idle) = (start.elapsed().as_secs_f64(), idle(&statistics)?.saturating_sub(before).as_secs_f64());
    let processors = f64::from(u32::try_from(std::thread::available_parallelism()?.get())?);
    Ok((time * processors - idle) / time * 100.0)
}

/// What all processors have had nothing to do, waiting for disks included: `/proc/stat`, which counts hundredths of a second.
pub fn idle(statistics: &fs::File) -> Result<Duration> {
    let mut text = [0; 256];
    let length = statistics.read_at(&mut text, 0)?;
    parse_idle(&String::from_utf8_lossy(&text[..length])).context("no idle time in /proc/stat")
}

/// `cpu user nice system idle iowait ...`.
fn parse_idle(text: &str) -> Option<Duration> {
    let mut times = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace().skip(3);
    let mut next = || times.next()?.parse::<u64>().ok();
    Some(Duration::from_millis((next()? + next()?) * 10))
}

#[cfg(test)]
mod tests {
    use super::parse_idle;
    use std::time::Duration;

    #[test]
    fn waiting_for_a_disk_is_idle() {
        assert_eq!(parse_idle("cpu  1 2 3 400 50 6 7\ncpu0 1"), Some(Duration::from_millis(4500)));
        assert_eq!(parse_idle("cpu  1 2 3"), None);
    }
}
