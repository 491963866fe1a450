//! `cargo xtask check`: everything that needs no virtual machine.

use crate::{links, run, zones};
use anyhow::Result;

pub fn check() -> Result<()> {
    step("formatting", &["fmt", "--all", "--check"])?;
    step("lints", &["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"])?;
    eprintln!("check: policy");
    zones::check()?;
    links::check()?;
    step("unit tests", &["test", "--workspace", "--exclude", "e2e", "--quiet"])
}

fn step(name: &str, arguments: &[&str]) -> Result<()> {
    eprintln!("check: {name}");
    run::run(run::cargo().args(arguments))
}
