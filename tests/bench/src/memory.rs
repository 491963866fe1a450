//! What idle pods take of the node's memory.

use crate::{pods, process, sample::tell};
use anyhow::{Context, Result};
use e2e::cri::Pod;
use std::fs;
use std::time::Duration;

/// As many as the figure is divided by.
const PODS: u32 = 8;

/// For what is freed after the answer.
const SETTLE: Duration = Duration::from_secs(5);

pub const MIB: f64 = 1_048_576.0;

/// Processes of a pod, by the kernel's name for them, which has 15 characters.
const PROCESSES: [(&str, &str); 4] = [
    ("containerd-shim", "pss-shim"),
    ("bulkhead-vmm", "pss-vmm"),
    ("bulkhead-fsd", "pss-file-server"),
    ("sleep", "pss-container"),
];

/// The node's available memory before and after, and the share of each process.
pub fn measure(handler: &str) -> Result<()> {
    // What the first pod makes for all of them is not one pod's.
    drop(pods::start(handler)?);
    let before = available()?;
    let pods: Vec<Pod> = (0..PODS).map(|_| pods::start(handler)).collect::<Result<_>>()?;
    let after = available()?;
    tell("memory-per-pod", (before - after) / f64::from(PODS) / MIB);
    for (name, row) in PROCESSES {
        let processes = process::named(name)?;
        // Of a pod: runc has a pause process besides the container's, and it has another name.
        let total: f64 = processes.iter().map(|process| process.pss()).sum::<Result<f64>>()?;
        if total > 0.0 {
            tell(row, total / f64::from(PODS) / MIB);
        }
    }
    let vmms = process::named("bulkhead-vmm")?;
    if !vmms.is_empty() {
        let total: f64 = vmms.iter().map(|vmm| vmm.private_without_guest()).sum::<Result<f64>>()?;
        tell("vmm-private", total / f64::from(PODS) / MIB);
    }
    drop(pods);
    Ok(())
}

/// What the node has for programs, in bytes, after it has settled.
pub fn available() -> Result<f64> {
    nix::unistd::sync();
    std::thread::sleep(SETTLE);
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    std::thread::sleep(SETTLE);
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    process::kilobytes(line).context("MemAvailable is no number of kB")
}
