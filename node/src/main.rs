//! The operator's command: puts Bulkhead on a node, checks it, and takes it off again.

mod check;
mod containerd;
mod daemon;
mod in_root;
mod install;
mod kubernetes;
mod layout;
mod record;
mod template;
mod trace;
mod uninstall;
mod volume;

use clap::{Args, Parser, Subcommand};
use layout::Layout;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "bulkhead", version, about = "Runs Kubernetes pods in microVMs: node installation and checks")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install from the unpacked bundle that this command is part of. Safe to run again.
    Install(Target),
    /// Remove what `install` put there and restore containerd's configuration.
    Uninstall(Target),
    /// Install, restart containerd if that is needed, label the node, and keep the label true: what the DaemonSet runs.
    Daemon {
        /// Where the node's root directory is seen.
        #[arg(long, default_value = "/")]
        root: PathBuf,
        #[command(flatten)]
        options: daemon::Options,
    },
    /// Run a program of the node with the node's root directory as its own.
    #[command(hide = true)]
    InRoot {
        root: PathBuf,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
    /// File systems on devices of this node that pods mount in their own kernel.
    #[command(subcommand)]
    Volume(volume::Volume),
    /// The machine that this node's pods are made from.
    #[command(subcommand)]
    Template(template::Template),
    /// What the starts of this node's pods took, as a timeline for trace viewers.
    Trace(trace::Trace),
    /// Say whether this node can run pods, and what is missing.
    Check {
        /// Where the node's root directory is seen.
        #[arg(long, default_value = "/")]
        root: PathBuf,
    },
}

#[derive(Args)]
struct Target {
    /// Where the node's root directory is seen (an installer container mounts it elsewhere).
    #[arg(long, default_value = "/")]
    root: PathBuf,
    /// Print what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Install(target) => install::install(&Layout::new(&target.root), target.dry_run).map(|()| true),
        Command::Uninstall(target) => uninstall::uninstall(&Layout::new(&target.root), target.dry_run).map(|()| true),
        Command::Daemon { root, options } => daemon::run(&Layout::new(&root), &options),
        Command::InRoot { root, command } => in_root::exec(&root, &command).map(|never| match never {}),
        Command::Volume(command) => volume::run(command, &volume::records()),
        Command::Template(command) => template::run(&command),
        Command::Trace(options) => trace::run(&options),
        Command::Check { root } => Ok(check::check(&Layout::new(&root))),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bulkhead: {error:#}");
            ExitCode::FAILURE
        }
    }
}
