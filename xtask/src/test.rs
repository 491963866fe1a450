//! `cargo xtask test`: checks, then the end-to-end suite in a node of each edition.

use crate::installed::Payload;
use crate::suite::{self, Choice, Report};
use crate::{check, installer_image, run};
use anyhow::{Context, Result, anyhow};
use clap::Args;
use node_vm::Edition;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// For a change of the node's settings.
const SETTING: Duration = Duration::from_secs(60);

#[derive(Args)]
pub struct Options {
    /// Only this edition of node: trixie or forky.
    #[arg(long)]
    edition: Option<Edition>,
    #[command(flatten)]
    choice: Choice,
    /// Leaves out formatting, lints, policy and unit tests.
    #[arg(long)]
    skip_unit: bool,
    /// Has every pod boot, instead of making them from the node's template.
    #[arg(long)]
    without_templates: bool,
}

pub fn test(options: &Options) -> Result<ExitCode> {
    let started = Instant::now();
    if !options.skip_unit {
        check::check()?;
    }
    let payload = Payload::new(None)?;
    payload.add(suite::PROGRAM, &suite::build()?)?;
    payload.add("installer.oci.tar", &installer_image::archive()?)?;
    let editions = options.edition.map_or(Edition::ALL.to_vec(), |edition| vec![edition]);
    let reports = run_editions(&editions, &payload, options);
    let mut good = true;
    for (edition, report) in editions.iter().zip(reports) {
        match report {
            Ok(report) => {
                eprintln!("{edition}: {report}");
                good &= report.good();
            }
            Err(error) => {
                eprintln!("{edition}: {error:#}");
                good = false;
            }
        }
    }
    eprintln!("test: {} after {} s", if good { "passed" } else { "FAILED" }, started.elapsed().as_secs());
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Side by side: a node leaves a processor idle while its containers boot one at a time, and so does making its image.
fn run_editions(editions: &[Edition], payload: &Payload, options: &Options) -> Vec<Result<Report>> {
    let terminal = Mutex::new(std::io::stderr());
    std::thread::scope(|scope| {
        let start = |edition: &Edition| {
            let edition = *edition;
            let terminal = &terminal;
            scope.spawn(move || run_edition(edition, payload, options, terminal))
        };
        let threads: Vec<_> = editions.iter().map(start).collect();
        let join = |thread: std::thread::ScopedJoinHandle<Result<Report>>| {
            thread.join().unwrap_or_else(|_| Err(anyhow!("the test runner panicked")))
        };
        threads.into_iter().map(join).collect()
    })
}

fn run_edition(
    edition: Edition,
    payload: &Payload,
    options: &Options,
    terminal: &Mutex<std::io::Stderr>,
) -> Result<Report> {
    let artifacts = run::workspace().join(format!("target/test-artifacts/{edition}"));
    if artifacts.exists() {
        std::fs::remove_dir_all(&artifacts).with_context(|| format!("cannot clear {}", artifacts.display()))?;
    }
    let mut progress = PrefixedLines { prefix: format!("{edition} | "), line: Vec::new(), terminal };
    let mut node = payload.start(edition, &artifacts, Ok, &mut progress)?;
    if options.without_templates {
        node.run("echo 'templates = false' >> /etc/bulkhead/config.toml", SETTING, &mut progress)?;
    }
    let report = suite::run(&mut node, &options.choice, &mut progress);
    // A node that died has said so already.
    if report.is_ok() {
        node.power_off()?;
    }
    report.with_context(|| format!("what is left of the node is in {}", artifacts.display()))
}

/// Output of two nodes on one terminal: whole lines, each with the node's name.
struct PrefixedLines<'a> {
    prefix: String,
    line: Vec<u8>,
    terminal: &'a Mutex<std::io::Stderr>,
}

impl Write for PrefixedLines<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let mut text = self.prefix.clone().into_bytes();
                text.append(&mut self.line);
                let terminal = self.terminal.lock();
                terminal.unwrap_or_else(std::sync::PoisonError::into_inner).write_all(&text)?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
