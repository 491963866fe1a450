//! `cargo xtask node`: a node VM for developers. tests/README.md tells how to use it.

use crate::installed::Payload;
use crate::{node_image, run};
use anyhow::{Context, Result};
use clap::Args;
use node_vm::{Builder, Clock, Edition, NodeVm};
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
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
    /// Installs this archive instead of building this checkout's.
    #[arg(long, value_name = "ARCHIVE")]
    bundle: Option<PathBuf>,
    /// Leaves the node without Bulkhead.
    #[arg(long, conflicts_with = "bundle")]
    not_installed: bool,
    /// Shows the node a directory as /shares/NAME, read-only. May be repeated.
    #[arg(long, value_name = "NAME=DIRECTORY")]
    share: Vec<String>,
    #[arg(long, default_value_t = 4096)]
    memory_mib: u32,
    #[arg(long, default_value_t = 1)]
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

impl Options {
    fn configure(&self, builder: Builder) -> Result<Builder> {
        let mut builder = builder.memory_mib(self.memory_mib).cpus(self.cpus);
        if self.instruction_clock {
            builder = builder.clock(Clock::Instructions);
        }
        for share in &self.share {
            let (name, directory) = share.split_once('=').with_context(|| format!("--share {share}: no `=`"))?;
            builder = builder.share(name, directory);
        }
        Ok(builder)
    }

    fn boot(&self, artifacts: &Path) -> Result<NodeVm> {
        let mut progress = std::io::stderr();
        if !self.not_installed {
            let payload = Payload::new(self.bundle.as_deref())?;
            return payload.start(self.edition, artifacts, |builder| self.configure(builder), &mut progress);
        }
        let node = self.configure(Builder::new(node_image::seeded(self.edition)?).artifacts(artifacts))?.start()?;
        writeln!(progress, "the node is up after {:.1} s", node.uptime().as_secs_f64())?;
        Ok(node)
    }
}

pub fn node(options: &Options) -> Result<ExitCode> {
    let artifacts = options.artifacts.clone();
    let artifacts =
        artifacts.unwrap_or_else(|| run::workspace().join(format!("target/node-artifacts/{}", options.edition)));
    let mut node = options.boot(&artifacts)?;

    let deadline = Duration::from_secs(options.deadline);
    let mut run = |script: &str| node.run(script, deadline, &mut std::io::stdout());
    let code = if let Some(path) = &options.script {
        run(&std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?)?
    } else if options.command.is_empty() {
        let mut code = 0;
        for line in std::io::stdin().lock().lines() {
            code = run(&line?)?;
            eprintln!("exit code {code}");
        }
        code
    } else {
        run(&options.command.join(" "))?
    };
    node.power_off()?;
    eprintln!("exit code {code}; the node's files are in {}", artifacts.display());
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
