//! From a bare kernel to a guest that can run containers, and then the agent.

pub mod identity;
mod limits;
mod mounts;
mod netlink;
pub mod network;
pub mod pod_files;
pub mod processors;
pub mod remembered;
pub mod sysctl;

use crate::agent::{Agent, Paths};
use crate::error::Error;
use crate::moments::Moments;
use crate::reaper::Reaper;
use crate::{kernel_log, server};
use std::process::ExitCode;
use std::sync::Arc;

/// Threads for calls that block in the kernel: mounts, PCI, sync. They end when idle.
const BLOCKING_THREADS: usize = 16;
const THREAD_STACK: usize = 256 * 1024;

/// The agent process, from its fork to the machine's end.
pub fn run() -> ExitCode {
    match prepare_and_serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // In both places: whichever of the two works by now.
            tracing::error!(%error, "the agent can't go on");
            eprintln!("bulkhead-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn prepare_and_serve() -> Result<(), Error> {
    let mut moments = Moments::default();
    moments.note("kernel");
    mounts::mount_all()?;
    moments.note("mounts");
    kernel_log::install();
    limits::become_subreaper()?;
    limits::apply();
    network::loopback_up()?;
    moments.note("settings");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(THREAD_STACK)
        .build()
        .map_err(Error::system("start", "the runtime"))?;
    runtime.block_on(async {
        let reaper = Reaper::spawn().map_err(Error::system("listen for", "SIGCHLD"))?;
        let paths = Paths::of_guest();
        let mut agent = Agent::new(paths, reaper).map_err(Error::system("create", "/run/bulkhead"))?;
        moments.note("runtime");
        agent.booted = moments;
        server::serve(Arc::new(agent)).await.map_err(Error::system("listen on", "vsock"))
    })
}
