//! Runs steps in a node, one at a time, and in as many nodes as that takes.
//!
//! An emulated node that runs guests may stand still for good, and a guest in it may die of its processor. So each call has
//! two limits, and what a call did not do is asked again; what was measured before stays, and is written as it comes.

use super::payload::Payload;
use super::sample::{Failure, Measured, parse};
use super::steps::{Stage, Step};
use crate::node_image;
use anyhow::{Context, Result, ensure};
use node_vm::{Builder, Clock, Edition, NodeVm};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

/// How many nodes are tried.
const NODES: u32 = 6;

/// How often a step may fail before it is left without a figure.
const TRIES: u32 = 4;

/// Of the emulator's time: a busy second of the node's takes up to 50 of it. A call that spins is ended in the node before that; here
/// ends a node whose own kernel spins.
const LONGEST_SILENCE: Duration = Duration::from_secs(400);

/// Wall time. A node that sleeps for good is woken: this is for what nobody has thought of, on a machine with much other work.
const DEADLINE: Duration = Duration::from_secs(3600);

/// Seconds of the node's clock that a call may take besides being busy.
const PAUSES: u32 = 120;

/// Seconds of the node's clock.
const CLEAN_LIMIT: u32 = 20;

/// In the node.
const PROGRAM: &str = "/run/bench/bench";

/// A step, and how far it is.
struct Progress {
    step: Step,
    left: u32,
    failures: u32,
    /// Whether this node's memory has what a call reads: the first call is not counted.
    warm: bool,
}

impl Progress {
    fn new(step: Step) -> Self {
        Self { step, left: step.rounds, failures: 0, warm: false }
    }

    fn open(&self) -> bool {
        self.left > 0 && self.failures < TRIES
    }

    fn due_in(&self, stage: Stage) -> bool {
        self.step.stage == stage && self.open()
    }
}

/// Everything that is to be measured, and what was.
pub struct Run<'a> {
    progress: Vec<Progress>,
    measured: Measured,
    clock: Clock,
    /// Called after each call: keeps what there is.
    keep: &'a dyn Fn(&Measured) -> Result<()>,
}

impl<'a> Run<'a> {
    /// `measured` is what there is already.
    pub fn new(steps: &[Step], clock: Clock, measured: Measured, keep: &'a dyn Fn(&Measured) -> Result<()>) -> Self {
        Self { progress: steps.iter().copied().map(Progress::new).collect(), measured, clock, keep }
    }

    /// In nodes of one clock.
    pub fn measure(mut self, edition: Edition, payload: &Payload, directory: &Path) -> Result<Measured> {
        let clock = self.clock;
        for _ in 0..NODES {
            if !self.progress.iter().any(Progress::open) {
                break;
            }
            self.measured.nodes += 1;
            let node = start(edition, clock, payload, directory);
            let end = node.and_then(|mut node| self.use_node(&mut node).and_then(|()| node.power_off()));
            if let Err(error) = end {
                eprintln!("bench: a node is given up: {error:#}");
            }
        }
        Ok(self.measured)
    }

    /// An error means that this node is of no more use.
    fn use_node(&mut self, node: &mut impl Shell) -> Result<()> {
        for part in &mut self.progress {
            // Many pods warm themselves.
            part.warm = part.step.stage >= Stage::Memory;
        }
        let mut containerd = false;
        for stage in Stage::ALL {
            // Contenders take turns, so that a node that changes with time changes for all.
            while self.progress.iter().any(|part| part.due_in(stage)) {
                if stage != Stage::Programs && !containerd {
                    run_script(node, "prepare-pods", include_str!("../../../../tests/bench/prepare-pods"))?;
                    containerd = true;
                }
                for part in self.progress.iter_mut().filter(|part| part.due_in(stage)) {
                    let done = call(node, self.clock, part, &mut self.measured);
                    let text = done.as_ref().map_or_else(|error| format!("{error:#}"), Clone::clone);
                    let text = text.lines().next().unwrap_or_default();
                    eprintln!("bench: {} {}: {text}", node.age(), part.step.name());
                    (self.keep)(&self.measured)?;
                    done?;
                }
            }
        }
        Ok(())
    }
}

/// What runs scripts: a node.
trait Shell {
    fn run(&mut self, script: &str, deadline: Duration, output: &mut dyn Write) -> Result<i32>;

    /// How long it has been there, for the one who waits.
    fn age(&self) -> String;
}

impl Shell for NodeVm {
    fn age(&self) -> String {
        let spent = self.processor_time().unwrap_or_default();
        format!("{:4} s ({:4} s of a processor)", self.uptime().as_secs(), spent.as_secs())
    }

    fn run(&mut self, script: &str, deadline: Duration, output: &mut dyn Write) -> Result<i32> {
        NodeVm::run(self, script, deadline, output)
    }
}

/// Measures once, and says what came of it. An error is the node's end.
fn call(node: &mut impl Shell, clock: Clock, part: &mut Progress, measured: &mut Measured) -> Result<String> {
    let step = part.step;
    let name = step.name();
    let mut output = Vec::new();
    // Its whole process group ends with it, and so do its guests.
    let busy = step.busy_seconds(clock);
    let script = format!("timeout -s KILL {} {PROGRAM} {busy} {name} 2>&1", busy + PAUSES);
    let code = node.run(&script, DEADLINE, &mut output);
    let output = String::from_utf8_lossy(&output);
    let reason = match &code {
        Ok(0) => {
            let samples = parse(&output, step.contender);
            let told: Vec<String> = samples.iter().map(|sample| format!("{} {}", sample.row, sample.value)).collect();
            if !part.warm {
                part.warm = true;
                return Ok(format!("{} (first call, not counted)", told.join(", ")));
            }
            part.left -= 1;
            measured.samples.extend(samples);
            return Ok(told.join(", "));
        }
        Ok(TIMED_OUT) => format!("did not end within {} s of the node's clock", busy + PAUSES),
        Ok(code) => format!("exit code {code}: {}", output.lines().last().unwrap_or_default().trim()),
        // The rest is the node's console.
        Err(error) => format!("the node stood still: {}", error.to_string().lines().next().unwrap_or_default()),
    };
    part.failures += 1;
    measured.failures.push(Failure { step: name, reason: reason.clone() });
    code?;
    if step.stage != Stage::Programs {
        clean(node)?;
    }
    Ok(reason)
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
fn run_script(node: &mut impl Shell, name: &str, script: &str) -> Result<()> {
    let code = node.run(script, DEADLINE, &mut std::io::stderr()).context(name.to_owned())?;
    ensure!(code == 0, "tests/bench/{name} failed with exit code {code}");
    Ok(())
}

/// Removes pods that a failed call left.
fn clean(node: &mut impl Shell) -> Result<()> {
    let script = format!("timeout -s KILL {CLEAN_LIMIT} {PROGRAM} {CLEAN_LIMIT} clean");
    let code = node.run(&script, DEADLINE, &mut std::io::stderr()).context("removing pods")?;
    ensure!(code == 0, "pods of a failed measurement cannot be removed");
    Ok(())
}

/// What `timeout -s KILL` ends with when it had to.
const TIMED_OUT: i32 = 128 + 9;

#[cfg(test)]
mod tests {
    use super::{Run, Shell};
    use crate::bench::rows::sample::Measured;
    use crate::bench::rows::steps;
    use anyhow::{Result, bail};
    use node_vm::Clock;
    use std::cell::Cell;
    use std::io::Write;
    use std::time::Duration;

    /// Ends each call with the next of these, and says a figure when that is 0. None is a node that stands still.
    struct Fake {
        codes: Vec<Option<i32>>,
        scripts: Vec<String>,
    }

    impl Fake {
        fn new(codes: &[Option<i32>]) -> Self {
            Self { codes: codes.iter().rev().copied().collect(), scripts: Vec::new() }
        }
    }

    impl Shell for Fake {
        fn age(&self) -> String {
            String::new()
        }

        fn run(&mut self, script: &str, _: Duration, output: &mut dyn Write) -> Result<i32> {
            self.scripts.push(script.lines().next().unwrap_or_default().to_owned());
            let Some(code) = self.codes.pop().unwrap_or(Some(0)) else { bail!("it hangs\nits console") };
            writeln!(output, "{{\"row\":\"r\",\"value\":{}}}", self.scripts.len())?;
            Ok(code)
        }
    }

    type Keep<'a> = &'a dyn Fn(&Measured) -> Result<()>;

    fn run_of<'a>(step: &str, rounds: u32, keep: Keep<'a>) -> Run<'a> {
        let steps = steps::chosen(&[step.to_owned()], Some(rounds), false);
        Run::new(&steps, Clock::Instructions, Measured::default(), keep)
    }

    fn values(measured: &Measured) -> Vec<f64> {
        measured.samples.iter().map(|sample| sample.value).collect()
    }

    #[test]
    fn the_first_call_that_succeeds_is_not_counted() {
        let kept = Cell::new(0);
        let keep = |measured: &Measured| {
            kept.set(measured.samples.len());
            Ok(())
        };
        let mut run = run_of("vmm-agent bulkhead-cold", 2, &keep);
        let mut node = Fake::new(&[Some(137), Some(0), Some(0), Some(1), Some(0)]);
        run.use_node(&mut node).unwrap();
        assert_eq!(values(&run.measured), [3.0, 5.0]);
        assert_eq!(kept.get(), 2);
        let reasons: Vec<&str> = run.measured.failures.iter().map(|failure| failure.reason.as_str()).collect();
        assert_eq!(reasons[0], "did not end within 122 s of the node's clock");
        assert!(reasons[1].starts_with("exit code 1"));
    }

    #[test]
    fn what_a_node_did_not_end_is_asked_of_the_next_one() {
        let keep = |_: &Measured| Ok(());
        let mut run = run_of("vmm-agent bulkhead-cold", 2, &keep);
        let mut first = Fake::new(&[Some(0), Some(0), None]);
        assert!(run.use_node(&mut first).is_err());
        assert_eq!(run.measured.failures[0].reason, "the node stood still: it hangs");
        // The new node's first call is for its memory.
        run.use_node(&mut Fake::new(&[])).unwrap();
        assert_eq!(values(&run.measured), [2.0, 2.0]);
    }

    #[test]
    fn a_call_that_never_succeeds_is_given_up() {
        let keep = |_: &Measured| Ok(());
        let mut run = run_of("vmm-agent bulkhead-cold", 2, &keep);
        let mut node = Fake::new(&[Some(1); 20]);
        run.use_node(&mut node).unwrap();
        assert_eq!((run.measured.samples.len(), node.scripts.len()), (0, 4));
    }

    #[test]
    fn pods_that_a_failed_call_left_are_removed() {
        let keep = |_: &Measured| Ok(());
        let mut run = run_of("memory bulkhead-cold", 1, &keep);
        let mut node = Fake::new(&[Some(0), Some(1)]);
        run.use_node(&mut node).unwrap();
        let kinds: Vec<bool> = node.scripts.iter().map(|script| script.ends_with(" clean")).collect();
        assert_eq!(kinds, [false, false, true, false]);
        assert_eq!(values(&run.measured), [4.0]);
    }
}
