//! The developer's commands. CI runs the same ones. `cargo xtask --help` lists them.

mod bench;
mod bootstrap;
mod cache;
mod check;
mod crun;
mod debian;
mod demo;
mod dist;
mod guest_image;
mod installed;
mod installer_image;
mod kernel;
mod links;
mod node;
mod node_image;
mod oci_images;
mod oci_layout;
mod run;
mod scratch_image;
mod suite;
mod test;
mod zones;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Parser)]
#[command(about = "Builds and tests Bulkhead")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Builds the guest kernel and prints its path.
    Kernel,
    /// Builds the guest's container runtime and prints its path.
    Crun,
    /// Builds the guest image and prints its path.
    GuestImage {
        /// The agent to put in; this checkout's if left out.
        #[arg(long)]
        agent: Option<PathBuf>,
    },
    /// Builds the bundle that `bulkhead install` puts on a node and prints its path.
    Dist,
    /// Builds the image that the DaemonSet runs, as an OCI archive, and prints its path.
    InstallerImage,
    /// Checks that trust zones hold and that documents name files that exist.
    Policy,
    /// Builds the OCI images that tests run and prints their directory.
    OciImages,
    /// Boots a node VM and runs commands in it.
    Node(node::Options),
    /// Checks formatting, lints and policy, and runs the unit tests.
    Check,
    /// Runs all checks, then the end-to-end suite in a node VM of each edition.
    Test(test::Options),
    /// Measures against other VMMs, in a node VM under the instruction clock. The last line printed is the result's path.
    Bench(bench::Options),
    /// Shows a container in its own microVM, in a node VM.
    Demo,
}

fn main() -> ExitCode {
    carry_out(Arguments::parse().command).unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}

fn carry_out(task: Task) -> Result<ExitCode> {
    match task {
        Task::Kernel => print_path(&kernel::vmlinux()?),
        Task::Crun => print_path(&crun::binary()?),
        Task::GuestImage { agent } => print_path(&dist::guest_image(agent.as_deref())?),
        Task::Dist => print_path(&dist::bundle()?.archive),
        Task::InstallerImage => print_path(&installer_image::archive()?),
        Task::Policy => zones::check().and_then(|()| links::check()).map(|()| ExitCode::SUCCESS),
        Task::OciImages => print_path(&oci_images::archives()?),
        Task::Node(options) => node::node(&options),
        Task::Check => check::check().map(|()| ExitCode::SUCCESS),
        Task::Test(options) => test::test(&options),
        Task::Bench(options) => bench::bench(&options).and_then(|path| print_path(&path)),
        Task::Demo => demo::demo(),
    }
}

fn print_path(path: &Path) -> Result<ExitCode> {
    println!("{}", path.display());
    Ok(ExitCode::SUCCESS)
}
