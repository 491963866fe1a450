//! What a start makes the processors do: exits from the guest, system calls, programs.

use crate::pods;
use crate::sample::{tell, tell_time};
use crate::timeline::Timeline;
use crate::trace::{count, lives, now};
use anyhow::{Context, Result};
use e2e::{BUSYBOX, FOREVER};
use std::collections::BTreeMap;

/// Reasons of an exit that have a row, as AMD's and Intel's numbers. The node's processor is AMD's where it is emulated.
const EXITS: [(&str, [u32; 2]); 5] = [
    ("exits-halt", [0x78, 12]),
    ("exits-port", [0x7b, 30]),
    ("exits-msr", [0x7c, 32]),
    ("exits-page", [0x400, 48]),
    ("exits-cpuid", [0x72, 10]),
];

/// Exits of a boot.
pub fn exits<T>(work: impl FnOnce() -> Result<T>) -> Result<()> {
    let (_, counts) = count("kvm/kvm_exit", "exit_reason", work)?;
    let mut rest: u32 = counts.iter().map(|(_, count)| count).sum();
    tell("exits", f64::from(rest));
    for (row, reasons) in EXITS {
        let mine = counts.iter().filter(|(key, _)| key.parse().is_ok_and(|reason| reasons.contains(&reason)));
        let sum: u32 = mine.map(|(_, count)| count).sum();
        rest -= sum;
        tell(row, f64::from(sum));
    }
    tell("exits-other", f64::from(rest));
    Ok(())
}

/// System calls of the whole node while a pod starts, and those of the programs with the most.
pub fn syscalls(handler: &str) -> Result<()> {
    let (pod, counts) = count("raw_syscalls/sys_enter", "common_pid.execname", || pods::start(handler))?;
    drop(pod);
    let mut programs: BTreeMap<String, u32> = BTreeMap::new();
    // `containerd [       123]`.
    for (key, count) in counts {
        let name = key.split('[').next().unwrap_or_default().trim().to_owned();
        *programs.entry(name).or_default() += count;
    }
    // This program's own are the same whoever runs the pod.
    programs.remove("bench");
    tell("syscalls", f64::from(programs.values().sum::<u32>()));
    for (name, count) in programs {
        eprintln!("{name}: {count} system calls");
    }
    Ok(())
}

/// Where the time of a pod's start goes, by the first execution of each program; and all of it as a timeline.
pub fn phases(handler: &str, file: &str) -> Result<()> {
    let begin = now()?;
    let (ends, list) = lives(|| {
        let pod = pods::run(handler)?;
        let sandbox = now()?;
        let container = pod.container("main", BUSYBOX).command(&FOREVER).try_create()?;
        let created = now()?;
        container.start()?;
        let started = now()?;
        pods::check_origin(handler)?;
        Ok((sandbox, created, started))
    })?;
    let (sandbox, created, started) = ends;
    let first = |part: &str| list.iter().find(|life| life.program.contains(part)).map(|life| life.start);
    let shim = first("containerd-shim").context("no shim was executed")?;
    let runtime = first("bulkhead-vmm").or_else(|| first("/runc")).context("no VMM and no runc was executed")?;
    let phases = [
        ("phase-containerd", begin, shim),
        ("phase-shim", shim, runtime),
        ("phase-sandbox", runtime, sandbox),
        ("phase-create", sandbox, created),
        ("phase-start", created, started),
    ];
    let mut timeline = Timeline::new(begin);
    for (row, start, end) in phases {
        tell_time(row, end.saturating_sub(start));
        timeline.span("phases", row, start, end);
    }
    for (call, start, end) in
        [("RunPodSandbox", begin, sandbox), ("CreateContainer", sandbox, created), ("StartContainer", created, started)]
    {
        timeline.span("CRI", call, start, end);
    }
    for life in list.iter().filter(|life| life.start < started) {
        let name = life.program.rsplit('/').next().unwrap_or_default();
        timeline.span(&format!("{name} {}", life.pid), name, life.start, life.end.unwrap_or(started).min(started));
    }
    timeline.write(file)
}
