//! `cargo xtask check`: everything that needs no virtual machine.

use crate::{crun, links, run, zones};
use anyhow::Result;
use std::process::Command;

pub fn check() -> Result<()> {
    step("formatting", run::cargo().args(["fmt", "--all", "--check"]))?;
    let lints = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"];
    step("lints", run::cargo().args(lints))?;
    eprintln!("check: policy");
    zones::check()?;
    links::check()?;
    let mut tests = run::cargo();
    // The agent's life cycle tests run containers with the guest's own crun.
    tests.env("BULKHEAD_TEST_CRUN", crun::binary()?);
    step("unit tests", tests.args(["test", "--workspace", "--exclude", "e2e", "--quiet"]))
}

fn step(name: &str, command: &mut Command) -> Result<()> {
    eprintln!("check: {name}");
    run::run(command)
}
