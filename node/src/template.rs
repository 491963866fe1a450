//! `bulkhead template`: the machine that pods of this node are made from. The shim's program makes it, as it starts VMMs.

use crate::layout::{Layout, PREFIX, SHIM};
use anyhow::{Context, Result, bail};
use bulkhead_config::STATE_DIRECTORY;
use clap::Subcommand;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Child, Command};

/// What the shim's program is told: make one unless there is one that fits.
const ENSURE: &str = "ensure-template";

#[derive(Debug, Subcommand)]
pub enum Template {
    /// Make it anew. Pods that run are left alone.
    Build {
        /// Where the node's root directory is seen.
        #[arg(long, default_value = "/")]
        root: PathBuf,
    },
    /// Remove it. Pods boot until one is made again, as an installation does, or the DaemonSet within an hour. `templates = false` lasts.
    Remove {
        #[arg(long, default_value = "/")]
        root: PathBuf,
    },
}

pub fn run(command: &Template) -> Result<bool> {
    match command {
        Template::Build { root } => build(&Layout::new(root)),
        Template::Remove { root } => remove(&Layout::new(root)),
    }
    .map(|()| true)
}

pub fn build(layout: &Layout) -> Result<()> {
    make(layout, "template")
}

fn builder(layout: &Layout, action: &str) -> Command {
    let mut command = layout.command(&format!("{PREFIX}/bin/{SHIM}"));
    command.arg(action);
    command
}

fn make(layout: &Layout, action: &str) -> Result<()> {
    let status = builder(layout, action).status().context("cannot run the shim's program")?;
    if !status.success() {
        bail!("there is no template: its builder ended with {status}");
    }
    Ok(())
}

/// For an installation: makes one unless there is one that fits. Pods boot without a template, so that a node is never without
/// Bulkhead for the lack of one.
pub fn ensure(layout: &Layout) {
    if let Err(error) = make(layout, ENSURE) {
        println!("no template was made, so that pods boot: {error:#}");
    }
}

/// The same, for whoever cannot wait for a boot. The process says itself what went wrong.
pub fn begin_to_ensure(layout: &Layout) -> Option<Child> {
    let begun = builder(layout, ENSURE).spawn();
    begun
        .inspect_err(|error| {
            println!("no template was made, so that pods boot: cannot run the shim's program: {error}")
        })
        .ok()
}

/// Where templates are; the directory is ours alone.
pub fn directory(layout: &Layout) -> PathBuf {
    layout.at(STATE_DIRECTORY)
}

/// For `check`: which pods start from it. A node without one, or with a damaged one, runs pods all the same.
pub fn summary(layout: &Layout) -> String {
    let output = layout.command(&format!("{PREFIX}/bin/{SHIM}")).arg("check-template").output();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output {
        Ok(output) if output.status.success() => text(&output.stdout),
        Ok(output) => format!("{}; pods boot", text(&output.stderr)),
        Err(error) => format!("unknown: the shim's program cannot be run: {error}"),
    }
}

pub fn remove(layout: &Layout) -> Result<()> {
    let directory = directory(layout);
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}
