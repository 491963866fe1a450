//! `bulkhead daemon`: what the DaemonSet runs on each node.
//!
//! ```text
//! install ─► restart containerd, if its configuration changed ─► check ─► label the node ─► check again each minute …
//!    ╰─ failed ─► take the label away ─► end
//! --remove:  take the label away ─► uninstall, once no pod runs ─► restart containerd ─► wait for the end
//! ```
//!
//! Each hour it makes a template if the node wants one and has none. Without a cluster around it, it does the same and labels nothing.

use crate::kubernetes::Cluster;
use crate::layout::Layout;
use crate::{check, install, template, uninstall};
use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use std::fs;
use std::os::fd::AsFd;
use std::process::Child;

/// Between two looks at the node, in milliseconds.
const INTERVAL: u16 = 60_000;

/// Intervals between two looks for a template: making one costs a boot, and the last attempt may have failed.
const TEMPLATE: u32 = 60;

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How containerd is restarted, as a command of the node.
    #[arg(long, default_value = "systemctl restart containerd")]
    restart: String,
    /// Take Bulkhead off the node.
    #[arg(long)]
    remove: bool,
    /// End after the first check.
    #[arg(long)]
    once: bool,
}

/// True: the node is as it should be, and the process was asked to end.
pub fn run(layout: &Layout, options: &Options) -> Result<bool> {
    let end = End::new()?;
    let cluster = Cluster::from_environment()?;
    if options.remove {
        remove(layout, options, cluster.as_ref(), &end)
    } else {
        keep(layout, options, cluster.as_ref(), &end)
    }
}

fn keep(layout: &Layout, options: &Options, cluster: Option<&Cluster>, end: &End) -> Result<bool> {
    let installed = install::install(layout, false).and_then(|()| restart_containerd(layout, &options.restart));
    if installed.is_err() {
        // The node may have been ready before, and be left between two versions now.
        label(cluster, false);
    }
    installed?;
    let mut told = String::new();
    let mut interval = 0;
    let mut maker = None;
    loop {
        let (good, report) = check::report(layout);
        if report != told {
            print!("{report}");
            told = report;
        }
        // Each time: somebody may have changed the label, and a node that was away comes back without it.
        label(cluster, good);
        if options.once || end.comes_within_interval()? {
            return Ok(good);
        }
        interval = (interval + 1) % TEMPLATE;
        let makes = |child: &mut Child| matches!(child.try_wait(), Ok(None));
        if interval == 0 && !maker.as_mut().is_some_and(makes) {
            maker = template::begin_to_ensure(layout);
        }
    }
}

fn remove(layout: &Layout, options: &Options, cluster: Option<&Cluster>, end: &End) -> Result<bool> {
    loop {
        // Before anything else: no new pod shall come.
        label(cluster, false);
        let result = uninstall::uninstall(layout, false).and_then(|()| restart_containerd(layout, &options.restart));
        match result {
            Ok(()) if options.once => return Ok(true),
            Ok(()) => {}
            Err(error) if options.once => return Err(error),
            Err(error) => eprintln!("bulkhead: {error:#}"),
        }
        if end.comes_within_interval()? {
            return Ok(true);
        }
    }
}

/// A node can be labelled by hand as well: that it can't be done here stops nothing.
fn label(cluster: Option<&Cluster>, ready: bool) {
    if let Some(Err(error)) = cluster.map(|cluster| cluster.label(ready)) {
        eprintln!("bulkhead: {error:#}");
    }
}

/// Does nothing unless containerd's configuration was changed since the node's boot. Pods outlive the restart.
fn restart_containerd(layout: &Layout, command: &str) -> Result<()> {
    let mark = layout.restart_needed();
    if !mark.exists() {
        return Ok(());
    }
    let mut words = command.split_whitespace();
    let mut restart = layout.command(words.next().context("--restart names no command")?);
    println!("restarting containerd: {command}");
    let status = restart.args(words).status().with_context(|| format!("cannot run {command:?} on the node"))?;
    if !status.success() {
        bail!("{command:?} failed on the node ({status}): name the right command with --restart");
    }
    fs::remove_file(&mark).with_context(|| format!("cannot remove {}", mark.display()))
}

/// SIGTERM and SIGINT, taken as requests: a container's first process would not die of them.
struct End(SignalFd);

impl End {
    fn new() -> Result<Self> {
        let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
        signals.thread_block().context("cannot block signals")?;
        Ok(Self(SignalFd::new(&signals).context("cannot wait for signals")?))
    }

    fn comes_within_interval(&self) -> Result<bool> {
        let mut wanted = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut wanted, PollTimeout::from(INTERVAL)).context("cannot wait for signals")? > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::tests::{AUTHORITY, account, cluster, server};

    #[test]
    fn a_node_that_cannot_be_upgraded_loses_its_label() {
        let (port, server) = server("HTTP/1.1 200 OK\r\n\r\n{}");
        let account = account(AUTHORITY);
        let root = tempfile::tempdir().unwrap();
        let options = Options { restart: "true".into(), remove: false, once: true };
        let cluster = cluster(port, account.path());
        // The test's program is not part of a bundle.
        let error = keep(&Layout::new(root.path()), &options, Some(&cluster), &End::new().unwrap()).unwrap_err();
        assert!(error.to_string().contains("bundle"), "{error:#}");
        let asked = server.join().unwrap();
        assert!(asked.ends_with("{\"bulkhead.io/ready\":null}}}"), "{asked}");
    }
}
