//! `cargo xtask node`: a node VM for developers. tests/README.md tells how to use it.

use crate::{node_image, run};
use anyhow::{Context, Result};
use clap::Args;
use node_vm::{Builder, Clock, Edition};
use std::io::BufRead;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Args)]
pub struct Options {
    /// The node's generation: trixie or forky.
    #[arg(long, default_value = "trixie")]
    edition: Edition,
    /// A shell script of the host to run in the node.
    #[arg(long, conflicts_with = "command")]
    script: Option<PathBuf>,
    /// Shows the node a directory as /shares/NAME, read-only. May be repeated.
    #[arg(long, value_name = "NAME=DIRECTORY")]
    share: Vec<String>,
    #[arg(long, default_value_t = 4096)]
    memory_mib: u32,
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// One nanosecond for each instruction, on one processor: for measurements that repeat.
    #[arg(long)]
    instruction_clock: bool,
    /// Seconds that one script may take.
    #[arg(long, default_value_t = 600)]
    deadline: u64,
    /// Where the node's /artifacts goes when it ends.
    #[arg(long)]
    artifacts: Option<PathBuf>,
    /// A command to run in the node. Without one, and without a script, each line of standard input is run.
    #[arg(last = true)]
    command: Vec<String>,
}

pub fn node(options: &Options) -> Result<ExitCode> {
    let artifacts = options.artifacts.clone();
    let artifacts =
        artifacts.unwrap_or_else(|| run::workspace().join(format!("target/node-artifacts/{}", options.edition)));
    let mut builder = Builder::new(node_image::plain(options.edition)?)
        .memory_mib(options.memory_mib)
        .cpus(options.cpus)
        .artifacts(&artifacts);
    if options.instruction_clock {
        builder = builder.clock(Clock::Instructions);
    }
    for share in &options.share {
        let (name, directory) = share.split_once('=').with_context(|| format!("--share {share}: no `=`"))?;
        builder = builder.share(name, directory);
    }

    eprintln!("xtask: booting a {} node", options.edition);
    let mut node = builder.start()?;
    eprintln!("xtask: the node is up after {:.1} s", node.uptime().as_secs_f64());

    let deadline = Duration::from_secs(options.deadline);
    let mut run = |script: &str| node.run(script, deadline, &mut std::io::stdout());
    let code = if let Some(path) = &options.script {
        run(&std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?)?
    } else if options.command.is_empty() {
        let mut code = 0;
        for line in std::io::stdin().lock().lines() {
            code = run(&line?)?;
            eprintln!("xtask: exit code {code}");
        }
        code
    } else {
        run(&options.command.join(" "))?
    };
    node.power_off()?;
    eprintln!("xtask: exit code {code}; the node's files are in {}", artifacts.display());
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
