//! A program of the node, run from the installer's container: with the node's root directory as its own.

use anyhow::{Context, Result, bail};
use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Becomes `command`; returns only when it can't.
pub fn exec(root: &Path, command: &[OsString]) -> Result<Infallible> {
    let Some((program, arguments)) = command.split_first() else { bail!("there is no command to run") };
    nix::unistd::chroot(root).with_context(|| format!("cannot make {} the root directory", root.display()))?;
    std::env::set_current_dir("/").context("cannot enter the node's root directory")?;
    // systemctl does nothing in another root than the first process's, unless it is told that this is meant.
    let error = Command::new(program).args(arguments).env("SYSTEMD_IGNORE_CHROOT", "1").exec();
    Err(error).with_context(|| format!("cannot run {} on the node", program.display()))
}
