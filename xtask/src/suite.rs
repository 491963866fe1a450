//! The end-to-end suite, run test by test in a node.
//!
//! Each test is its own process with its own deadline, so one that hangs costs only itself, and a failed one
//! leaves a directory with its output and with what containerd and the shims logged meanwhile.

use crate::run;
use anyhow::{Context, Result, bail};
use clap::Args;
use node_vm::{DEFAULT_DEADLINE, NodeVm};
use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The suite's file name in `/shares/payload`.
pub const PROGRAM: &str = "suite";

/// In the node: the longest test starts two hundred pods, at several seconds each under emulation.
const TEST_SECONDS: u64 = 3600;
/// On the host: the node ends a test itself unless it is in trouble.
const TEST_DEADLINE: Duration = Duration::from_secs(TEST_SECONDS + 120);

/// Builds the suite and returns its program.
pub fn build() -> Result<PathBuf> {
    let mut cargo = run::cargo();
    cargo.args(["test", "--package", "e2e", "--test", PROGRAM, "--no-run", "--message-format=json-render-diagnostics"]);
    let messages = run::output(&mut cargo)?;
    let executable = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let matches = message["target"]["name"] == PROGRAM && message["profile"]["test"] == true;
        matches.then(|| message["executable"].as_str().map(PathBuf::from))?
    };
    messages.lines().find_map(executable).context("cargo built no end-to-end suite")
}

/// How a suite went.
#[derive(Debug, Default)]
pub struct Report {
    passed: usize,
    skipped: usize,
    failed: Vec<String>,
}

impl Report {
    /// No failure, and not for want of tests.
    pub fn good(&self) -> bool {
        self.failed.is_empty() && self.passed > 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} passed, {} failed, {} skipped", self.passed, self.failed.len(), self.skipped)?;
        self.failed.iter().try_for_each(|name| write!(formatter, "\n    failed: {name}"))
    }
}

/// Which tests to run.
#[derive(Args)]
pub struct Choice {
    /// Only end-to-end tests whose name contains this; may be given several times.
    #[arg(long)]
    filter: Vec<String>,
    /// Also the tests that take many minutes, and pods by both of containerd's ways on both editions: more than an hour.
    /// They are counted as skipped otherwise.
    #[arg(long)]
    long: bool,
}

/// Runs the tests of `choice`. An error means that the node is gone.
pub fn run(node: &mut NodeVm, choice: &Choice, progress: &mut dyn Write) -> Result<Report> {
    let all = list(node, "")?;
    let too_long = if choice.long { Vec::new() } else { list(node, "--ignored")? };
    let chosen = |name: &&String| choice.filter.is_empty() || choice.filter.iter().any(|part| name.contains(part));
    let (skipped, names): (Vec<&String>, Vec<&String>) =
        all.iter().filter(chosen).partition(|name| too_long.contains(name));

    let mut report = Report { skipped: skipped.len(), ..Report::default() };
    for name in skipped {
        writeln!(progress, "skipped {name}: only in make test-long")?;
    }
    for (position, name) in names.iter().enumerate() {
        let started = Instant::now();
        let mut output = Vec::new();
        let result = node.run(&test_script(name, choice.long), TEST_DEADLINE, &mut output);
        let output = String::from_utf8_lossy(&output);
        let outcome = match result {
            Ok(code) => outcome(code, &output),
            Err(error) => {
                writeln!(progress, "{output}")?;
                return Err(error.context(format!("in the test {name}")));
            }
        };
        let (place, seconds) = (format!("{}/{}", position + 1, names.len()), started.elapsed().as_secs_f64());
        writeln!(progress, "{place} {outcome} {name} {seconds:.1} s")?;
        match outcome {
            Outcome::Passed => report.passed += 1,
            Outcome::Skipped => report.skipped += 1,
            Outcome::Failed => {
                writeln!(progress, "{}", output.trim_end())?;
                report.failed.push((*name).clone());
            }
        }
    }
    Ok(report)
}

/// The names of the suite's tests, all or only those that are ignored.
fn list(node: &mut NodeVm, which: &str) -> Result<Vec<String>> {
    let mut listing = Vec::new();
    let script = format!("/shares/payload/{PROGRAM} --list --format terse {which}");
    if node.run(&script, DEFAULT_DEADLINE, &mut listing)? != 0 {
        bail!("the suite cannot list its tests: {}", String::from_utf8_lossy(&listing));
    }
    Ok(test_names(&String::from_utf8_lossy(&listing)).map(str::to_owned).collect())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Skipped,
    Failed,
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Outcome::Passed => "ok",
            Outcome::Skipped => "skipped",
            Outcome::Failed => "FAILED",
        })
    }
}

fn test_names(listing: &str) -> impl Iterator<Item = &str> {
    listing.lines().filter_map(|line| line.strip_suffix(": test"))
}

/// libtest's exit code alone is no proof: a test may have ended the process itself.
fn outcome(code: i32, output: &str) -> Outcome {
    let result = output.lines().rev().find_map(|line| line.strip_prefix("test result: ok. "));
    // What a test finds missing on this node, libtest cannot know. With one processor it writes the test's name in front.
    let skipped = output.lines().any(|line| line.starts_with("test skipped: ") || line.contains(" ... test skipped: "));
    match result {
        Some(counts) if code == 0 && counts.starts_with("1 passed") && skipped => Outcome::Skipped,
        Some(counts) if code == 0 && counts.starts_with("1 passed") => Outcome::Passed,
        _ => Outcome::Failed,
    }
}

/// Runs one test. What it leaves in its artifacts directory stays only if it failed.
fn test_script(name: &str, long: bool) -> String {
    let (ignored, long) = if long { ("--include-ignored", "E2E_LONG=1") } else { ("", "") };
    let directory = format!("/artifacts/failed/{}", name.replace("::", "."));
    format!(
        "directory={directory}
        mkdir -p $directory
        logged=$(stat -c %s /artifacts/containerd.log)
        {long} timeout --kill-after=10 {TEST_SECONDS} /shares/payload/{PROGRAM} --exact {name} --nocapture {ignored} \
            >$directory/output.log 2>&1
        code=$?
        cat $directory/output.log
        [ $code -ne 124 ] || echo 'the test did not end within {TEST_SECONDS} s'
        if [ $code -eq 0 ]; then rm -r $directory; exit 0; fi
        tail -c +$((logged + 1)) /artifacts/containerd.log >$directory/containerd.log
        ps -eo pid,ppid,user,etime,stat,args --forest >$directory/processes
        cat /proc/mounts >$directory/mounts
        dmesg >$directory/kernel.log
        exit $code"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn benchmarks_and_totals_are_no_tests() {
        let listing = "streams::overlayfs::exact: test\nspeed: benchmark\nchurn::ten: test\n";
        assert_eq!(test_names(listing).collect::<Vec<_>>(), ["streams::overlayfs::exact", "churn::ten"]);
    }

    #[test]
    fn a_test_passes_only_when_libtest_counted_it() {
        let line = |counts| format!("running 1 test\ntest result: {counts}; 0 measured; 9 filtered out\n\n");
        assert_eq!(outcome(0, &line("ok. 1 passed; 0 failed; 0 ignored")), Outcome::Passed);
        for name in ["", "test pods::one ... "] {
            let skipped = format!("{name}test skipped: no such thing\n{}", line("ok. 1 passed; 0 failed; 0 ignored"));
            assert_eq!(outcome(0, &skipped), Outcome::Skipped);
        }
        assert_eq!(outcome(101, &line("FAILED. 0 passed; 1 failed; 0 ignored")), Outcome::Failed);
        assert_eq!(outcome(0, "running 1 test\n"), Outcome::Failed);
        assert_eq!(outcome(124, ""), Outcome::Failed);
    }
}
