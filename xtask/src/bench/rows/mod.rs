//! Start time and memory: rows of figures, each measured a few times by a call of the node's program (`tests/bench`).

mod block;
mod budget;
mod chart;
mod document;
mod node;
mod payload;
mod repeated;
mod result;
mod row;
mod sample;
mod steps;
mod table;
mod target;

use crate::run;
use anyhow::{Context, Result, ensure};
use clap::Args;
use node::Run;
use node_vm::{Clock, Edition};
use result::BenchResult;
use sample::{Failure, Measured};
use std::fs;
use std::path::PathBuf;

#[derive(Args)]
pub struct Choice {
    /// The node's generation: trixie or forky.
    #[arg(long, default_value = "trixie")]
    edition: Edition,
    /// Only measurements whose name contains this, such as `vmm` or `vmm-agent bulkhead`; may be given several times.
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    /// How often each is measured, instead of what its row says.
    #[arg(long)]
    rounds: Option<u32>,
    /// A few rounds of the most important rows.
    #[arg(long)]
    quick: bool,
    /// Measures in the host's time, in a node that uses the host's KVM where there is one.
    #[arg(long)]
    wall_clock: bool,
    /// Where the result goes instead of target/bench/bench.json.
    #[arg(long)]
    result: Option<PathBuf>,
}

#[derive(Args)]
pub struct Files {
    /// Results; where two have the same figure, the later one's is taken.
    #[arg(required = true)]
    results: Vec<PathBuf>,
}

#[derive(Args)]
pub struct Comparison {
    /// The newer result.
    #[arg(default_value = "target/bench/bench.json")]
    result: PathBuf,
    /// The older one.
    #[arg(long, default_value = "tests/bench/baseline.json")]
    baseline: PathBuf,
    /// Both are of the same program: fails when VMMs alone differ by more than 1 %, or pods by more than 3 %.
    #[arg(long)]
    repeated: bool,
}

/// Boots of each VMM.
const BLOCK_ROUNDS: u32 = 3;

impl Choice {
    /// It has a node of its own, whose clock counts instructions.
    fn block(&self) -> bool {
        let named = self.only.iter().any(|part| block::NAME.contains(part.as_str()));
        (named || self.only.is_empty() && !self.quick) && !self.wall_clock
    }
}

/// Measures, prints the table, and returns the path of the result.
pub fn measure(choice: &Choice) -> Result<PathBuf> {
    let steps = steps::chosen(&choice.only, choice.rounds, choice.quick);
    let block = choice.block();
    ensure!(!steps.is_empty() || block, "there is no such measurement; all are: {}, {}", steps::names(), block::NAME);
    let directory = run::workspace().join("target/bench");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let payload = payload::make(steps.iter().any(|step| step.compared))?;
    let clock = if choice.wall_clock { Clock::Wall } else { Clock::Instructions };
    let path = choice.result.clone().unwrap_or_else(|| directory.join("bench.json"));
    let result = |measured: &Measured| BenchResult::new(clock, choice.edition, choice.quick, measured);
    let keep = |measured: &Measured| result(measured).write(&path);
    let mut measured = Measured::default();
    let (timed, untimed): (Vec<_>, Vec<_>) = steps.into_iter().partition(|step| step.clock(clock) == clock);
    for (steps, clock) in [(timed, clock), (untimed, Clock::Wall)] {
        measured = Run::new(&steps, clock, measured, &keep).measure(choice.edition, &payload, &directory)?;
    }
    if block {
        let rounds = choice.rounds.unwrap_or(BLOCK_ROUNDS);
        // The other rows are worth having without these.
        if let Err(error) = block::measure(choice.edition, rounds, &mut measured) {
            measured.failures.push(Failure { step: block::NAME.to_owned(), reason: format!("{error:#}") });
        }
    }
    keep(&measured)?;
    let result = result(&measured);
    let targets = target::read()?;
    print!("{}\n{}", table::table(&result, &targets), table::remarks(&result, &targets));
    Ok(path)
}

/// Measures what has a budget, a few times, and fails when it is exceeded.
pub fn budget() -> Result<PathBuf> {
    let path = run::workspace().join("target/bench/budget.json");
    let choice = Choice {
        edition: Edition::Trixie,
        only: budget::STEPS.map(str::to_owned).to_vec(),
        rounds: Some(budget::ROUNDS),
        quick: false,
        wall_clock: false,
        result: Some(path),
    };
    let path = measure(&choice)?;
    budget::check(&BenchResult::read(&path)?)?;
    Ok(path)
}

/// Writes docs/performance.md, its charts and the baseline.
pub fn document(files: &Files) -> Result<PathBuf> {
    let mut results = files.results.iter().map(|file| BenchResult::read(file));
    let mut all = results.next().context("there is no result")??;
    for result in results {
        all.update(result?);
    }
    document::write(&all)?;
    let baseline = run::workspace().join("tests/bench/baseline.json");
    all.write(&baseline)?;
    Ok(baseline)
}

/// Prints ratios, and returns the path of the newer result.
pub fn compare(comparison: &Comparison) -> Result<PathBuf> {
    let old = BenchResult::read(&comparison.baseline)?;
    let new = BenchResult::read(&comparison.result)?;
    print!("{}", table::comparison(&old, &new));
    if comparison.repeated {
        repeated::check(&old, &new)?;
    }
    Ok(comparison.result.clone())
}
