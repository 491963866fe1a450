//! `cargo xtask bench`: measurements against other VMMs in a node VM under the instruction clock. docs/performance.md
//! tells how to read them.

mod disk;
mod images;
mod output;
mod plan;
mod result;
mod rows;
mod statistics;

use anyhow::Result;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// What results call it.
const INSTRUCTION_CLOCK: &str = "instructions: the node's clock advances one nanosecond for each";

/// Without a subcommand: start time and memory.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    subject: Option<Subject>,
    #[command(flatten)]
    rows: rows::Choice,
}

#[derive(Subcommand)]
enum Subject {
    /// virtio-blk: instructions for each request, compared with QEMU's microvm.
    Disk(disk::Options),
    /// Writes docs/performance.md, its charts and the baseline from results.
    Document(rows::Files),
    /// Fails when a start takes more of the clock than tests/bench/budget.json allows.
    Budget,
    /// Shows the figures of a result as multiples of the baseline's.
    Compare(rows::Comparison),
}

/// Prints a table and returns the path of the result's file.
pub fn bench(options: &Options) -> Result<PathBuf> {
    match &options.subject {
        Some(Subject::Disk(options)) => disk::measure(options),
        Some(Subject::Document(files)) => rows::document(files),
        Some(Subject::Budget) => rows::budget(),
        Some(Subject::Compare(comparison)) => rows::compare(comparison),
        None => rows::measure(&options.rows),
    }
}
