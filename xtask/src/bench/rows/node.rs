//! Runs steps in a node, one at a time, and in as many nodes as that takes.
//!
//! An emulated node that runs guests may stand still for good, and a guest in it may die of its processor. So each call has
//! two limits, and what a call did not do is asked again; what was measured before stays.

use super::payload::Payload;
use super::sample::{Failure, Measured, parse};
use super::steps::{Stage, Step};
use crate::node_image;
use anyhow::{Context, Result, ensure};
use node_vm::{Builder, Clock, Edition, NodeVm};
use std::path::Path;
use std::time::{Duration, Instant};

/// How many nodes are tried.
const NODES: u32 = 4;

/// How often a step may fail before it is left without a figure.
const TRIES: u32 = 6;

/// Of the emulator's time: a second of the node's takes up to 50 of it.
const LONGEST_SILENCE: Duration = Duration::from_secs(400);

const PREPARE: Duration = Duration::from_secs(300);

/// Seconds of the node's clock.
const CLEAN_LIMIT: u32 = 60;

/// In the node.
const PROGRAM: &str = "/run/bench/bench";

/// A step, and how far it is.
struct Progress {
    step: Step,
    left: u32,
    failures: u32,
}

impl Progress {
    fn open(&self) -> bool {
        self.left > 0 && self.failures < TRIES
    }
}

pub fn measure(
    edition: Edition,
    clock: Clock,
    steps: &[Step],
    payload: &Payload,
    directory: &Path,
) -> Result<Measured> {
    let mut progress: Vec<Progress> =
        steps.iter().map(|&step| Progress { step, left: step.rounds, failures: 0 }).collect();
    let mut measured = Measured::default();
    while measured.nodes < NODES && progress.iter().any(Progress::open) {
        measured.nodes += 1;
        let started = Instant::now();
        let node = start(edition, clock, payload, directory);
        let end = node.and_then(|node| run_node(node, started, &mut progress, &mut measured));
        if let Err(error) = end {
            eprintln!("bench: a node is given up: {error:#}");
        }
    }
    Ok(measured)
}

fn start(edition: Edition, clock: Clock, payload: &Payload, directory: &Path) -> Result<NodeVm> {
    let builder = Builder::new(node_image::seeded(edition)?).clock(clock).longest_silence(LONGEST_SILENCE);
    let mut builder = builder.share("bench", payload.files());
    if let Some(qemu) = &payload.qemu {
        builder = builder.share("qemu", qemu);
    }
    let mut node = builder.artifacts(directory.join("node")).start()?;
    eprintln!("bench: a node is up after {:.0} s", node.uptime().as_secs_f64());
    run_script(&mut node, "prepare", include_str!("../../../../tests/bench/prepare"))?;
    Ok(node)
}

/// One of `tests/bench`.
fn run_script(node: &mut NodeVm, name: &str, script: &str) -> Result<()> {
    let code = node.run(script, PREPARE, &mut std::io::stderr()).context(name.to_owned())?;
    ensure!(code == 0, "tests/bench/{name} failed with exit code {code}");
    Ok(())
}

/// An error means that this node is of no more use.
fn run_node(mut node: NodeVm, started: Instant, progress: &mut [Progress], measured: &mut Measured) -> Result<()> {
    let mut containerd = false;
    for stage in Stage::ALL {
        let due = |part: &&mut Progress| part.step.stage == stage && part.open();
        if stage != Stage::Programs && !containerd && progress.iter_mut().any(|part| due(&part)) {
            run_script(&mut node, "prepare-pods", include_str!("../../../../tests/bench/prepare-pods"))?;
            containerd = true;
        }
        if stage != Stage::Memory {
            // The first call reads what later ones find in the node's memory.
            for part in progress.iter_mut().filter(due) {
                call(&mut node, started, part, true, measured)?;
            }
        }
        // Contenders take turns, so that a node that changes with time changes for all.
        while progress.iter_mut().any(|part| due(&part)) {
            for part in progress.iter_mut().filter(due) {
                call(&mut node, started, part, false, measured)?;
            }
        }
    }
    node.power_off()
}

fn call(
    node: &mut NodeVm,
    started: Instant,
    part: &mut Progress,
    warm_up: bool,
    measured: &mut Measured,
) -> Result<()> {
    let step = part.step;
    let name = step.name();
    let failures = part.failures;
    let mut output = Vec::new();
    // Its whole process group ends with it, and so do its guests.
    let script = format!("timeout -s KILL {} {PROGRAM} {name} 2>&1", step.limit);
    let code = node.run(&script, step.deadline, &mut output);
    let output = String::from_utf8_lossy(&output);
    let mut fail = |reason: String| {
        part.failures += 1;
        eprintln!("bench: {:4} s {name}: {reason}", started.elapsed().as_secs());
        measured.failures.push(Failure { step: name.clone(), reason });
    };
    let code = match code {
        Ok(code) => code,
        Err(error) => {
            fail(format!("the node did not end it within {} s of wall time", step.deadline.as_secs()));
            return Err(error).context(name);
        }
    };
    let samples = parse(&output, step.contender);
    if code == 0 {
        let told: Vec<String> = samples.iter().map(|sample| format!("{} {}", sample.row, sample.value)).collect();
        let kind = if warm_up { " (first call, not counted)" } else { "" };
        eprintln!("bench: {:4} s {name}: {}{kind}", started.elapsed().as_secs(), told.join(", "));
        if !warm_up {
            part.left -= 1;
            measured.samples.extend(samples);
        }
    } else if code == TIMED_OUT {
        fail(format!("did not end within {} s of the node's clock", step.limit));
    } else {
        fail(format!("exit code {code}: {}", output.lines().last().unwrap_or_default().trim()));
    }
    if part.failures > failures && step.stage != Stage::Programs {
        clean(node)?;
    }
    Ok(())
}

/// Removes pods that a failed call left.
fn clean(node: &mut NodeVm) -> Result<()> {
    let script = format!("timeout -s KILL {CLEAN_LIMIT} {PROGRAM} clean");
    let code = node.run(&script, PREPARE, &mut std::io::stderr()).context("removing pods")?;
    ensure!(code == 0, "pods of a failed measurement cannot be removed");
    Ok(())
}

/// What `timeout -s KILL` ends with when it had to.
const TIMED_OUT: i32 = 128 + 9;
