//! The developer's commands. CI runs the same ones. `cargo xtask --help` lists them.

mod cache;
mod run;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Builds and tests Bulkhead")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {}

fn main() -> Result<()> {
    match Arguments::parse().command {}
}
