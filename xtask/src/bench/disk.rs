//! `cargo xtask bench disk`: both VMMs boot the same kernel and guest image on the same disk, in turn, in one node.

use super::output::Measured;
use super::plan::{self, Plan};
use super::result::{self, Job};
use super::{images, output};
use crate::{dist, kernel, node_image, run::workspace};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use node_vm::{Builder, Clock, Edition};
use serde_json::json;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(3600);

/// How many nodes are tried.
const NODES: u32 = 4;

/// Of the emulator's time: the two seconds after which `measure` gives a guest up are 100 of them.
const LONGEST_SILENCE: Duration = Duration::from_secs(300);

#[derive(Args)]
pub struct Options {
    /// The node's generation: trixie or forky.
    #[arg(long, default_value = "trixie")]
    edition: Edition,
    /// How often each VMM is booted and runs all jobs.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Makes the table of what an earlier run's nodes printed, instead of measuring.
    #[arg(long)]
    log: Option<PathBuf>,
}

pub fn measure(options: &Options) -> Result<PathBuf> {
    let jobs = jobs()?;
    let directory = directory()?;
    let measured = match &options.log {
        Some(log) => {
            let text = fs::read_to_string(log).with_context(|| format!("cannot read {}", log.display()))?;
            output::parse(&text, &jobs)?
        }
        None => run(options.edition, &Plan::new(&jobs, options.rounds), &jobs)?,
    };
    let rows = result::rows(&jobs, &measured.samples)?;
    let path = directory.join("disk.json");
    let report = json!({
        "clock": super::INSTRUCTION_CLOCK,
        "unit": "nanoseconds of that clock for a request: instructions of guest, VMM and node together",
        "edition": options.edition.to_string(),
        "boots": measured.boots,
        "failed boots": result::failures(&measured.failures),
        "jobs": result::json(&rows),
    });
    fs::write(&path, format!("{report:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    print!("{}\n{}", result::table(&rows), result::repeats(&measured));
    Ok(path)
}

/// Jobs whose names contain `part`, on our VMM and on QEMU's as it is when it is told nothing.
pub fn compare(edition: Edition, rounds: u32, part: &str) -> Result<Measured> {
    let mut jobs = jobs()?;
    jobs.retain(|job| job.name.contains(part));
    run(edition, &Plan::of(&jobs, rounds, &plan::CONTENDERS[..2]), &jobs)
}

fn jobs() -> Result<Vec<Job>> {
    let text = fs::read_to_string(images::recipe().join("jobs")).context("cannot read images/bench/jobs")?;
    Job::parse_all(&text)
}

fn directory() -> Result<PathBuf> {
    let directory = workspace().join("target/bench");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    Ok(directory)
}

fn run(edition: Edition, wanted: &Plan, jobs: &[Job]) -> Result<Measured> {
    output::parse(&run_nodes(edition, wanted, jobs, &directory()?)?, jobs)
}

/// What the guests said in as many nodes as it took. It is also kept in `directory`, also of a run that failed.
///
/// An emulated node that runs guests may stand still for good, and a guest in it may die of its processor: what a node did not
/// bring to an end is given to another one.
fn run_nodes(edition: Edition, wanted: &Plan, jobs: &[Job], directory: &Path) -> Result<String> {
    let tools = images::tools()?;
    let files = files(&tools)?;
    let mut log = Log { text: Vec::new(), file: fs::File::create(directory.join("disk.log"))? };
    for _ in 0..NODES {
        let text = String::from_utf8_lossy(&log.text).into_owned();
        let left = wanted.without(&output::parse(&text, jobs)?.samples);
        if left.is_empty() {
            return Ok(text);
        }
        if let Err(error) = run_node(edition, &left, &tools, files.path(), directory, &mut log) {
            eprintln!("a node is given up: {error:#}");
        }
        // The next node's first line must not be the end of this one's last.
        log.write_all(b"\n")?;
    }
    bail!("{NODES} nodes did not bring every job to its end; their log is in {}", directory.display())
}

fn run_node(edition: Edition, plan: &Plan, tools: &Path, files: &Path, directory: &Path, log: &mut Log) -> Result<()> {
    let builder =
        Builder::new(node_image::seeded(edition)?).clock(Clock::Instructions).longest_silence(LONGEST_SILENCE);
    let builder = builder.share("bench", files).share("qemu", tools);
    let mut node = builder.artifacts(directory.join("node")).start()?;
    let script = fs::read_to_string(images::recipe().join("measure")).context("cannot read images/bench/measure")?;
    let script = format!("export PLAN='{}'\nbash -s <<'SCRIPT'\n{script}\nSCRIPT\n", plan.to_text());
    let code = node.run(&script, DEADLINE, log)?;
    node.power_off()?;
    ensure!(code == 0, "images/bench/measure failed with exit code {code}");
    Ok(())
}

/// Everything but QEMU that the node needs, in one directory.
fn files(tools: &Path) -> Result<TempDir> {
    let directory = tempfile::Builder::new().prefix("bench-").tempdir_in("/var/tmp")?;
    let files = [
        ("bulkhead-vmm", dist::bundle()?.directory.join("bin/bulkhead-vmm")),
        ("one-guest", dist::bench_programs()?.join("one-guest")),
        ("guest.erofs", images::guest(tools)?),
        ("vmlinux", kernel::bench_vmlinux()?),
    ];
    for (name, from) in files {
        fs::copy(&from, directory.path().join(name)).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(directory)
}

/// Keeps what the node prints, and shows how far it is.
struct Log {
    text: Vec<u8>,
    file: fs::File,
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.text.extend_from_slice(bytes);
        self.file.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}
