//! Start time and memory: rows of figures, each measured a few times by a call of the node's program (`tests/bench`).

mod node;
mod payload;
mod report;
mod sample;
mod steps;

use crate::run;
use anyhow::{Context, Result, ensure};
use clap::Args;
use node_vm::Edition;
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
}

pub fn measure(options: &Choice) -> Result<PathBuf> {
    let steps = steps::chosen(&options.only, options.rounds, options.quick);
    ensure!(!steps.is_empty(), "there is no such measurement; all are: {}", steps::names());
    let directory = run::workspace().join("target/bench");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let payload = payload::make()?;
    let measured = node::measure(options.edition, &steps, &payload, &directory)?;
    let report = report::Report::new(options.edition, options.quick, &measured);
    let path = directory.join("bench.json");
    fs::write(&path, report.to_json()).with_context(|| format!("cannot write {}", path.display()))?;
    print!("{}", report.to_text());
    Ok(path)
}
