//! Directories that cross between host and node as disk images.
//!
//! Debian's cloud kernel has neither 9p nor a use for a virtiofs daemon here; an image is made in well under a
//! second, read at the speed of virtio-blk, and what a dead node wrote is still on it.

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};

/// Sparse: only what the node writes takes room on the host.
const ARTIFACTS_SIZE: &str = "4G";

/// Makes `image` a read-only file system with the content of `directory`.
pub(crate) fn pack_share(directory: &Path, image: &Path) -> Result<()> {
    if !directory.is_dir() {
        bail!("cannot share {} with the node: no such directory", directory.display());
    }
    tool(Command::new("mkfs.erofs").arg("--quiet").arg("--all-root").arg(image).arg(directory))
        .with_context(|| format!("cannot pack {}", directory.display()))
}

/// Makes `image` the empty disk that the node mounts at `/artifacts`.
pub(crate) fn create_artifacts(image: &Path) -> Result<()> {
    tool(Command::new("mke2fs").args(["-q", "-t", "ext4", "-E", "nodiscard"]).arg(image).arg(ARTIFACTS_SIZE))
        .context("cannot make the artifacts disk")
}

/// Copies the content of the artifacts disk into `directory`.
pub(crate) fn unpack_artifacts(image: &Path, directory: &Path) -> Result<()> {
    // A node that was killed leaves its journal unplayed. e2fsck returns 1 when it mended something.
    let status = Command::new("e2fsck")
        .args(["-f", "-y"])
        .arg(image)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("cannot run e2fsck")?;
    if !matches!(status.code(), Some(0 | 1)) {
        bail!("e2fsck cannot mend the artifacts disk: {status}");
    }
    // debugfs quotes nothing: a path with a space in it would be two arguments.
    let target = directory.to_str().filter(|path| !path.contains(char::is_whitespace));
    let target = target.with_context(|| format!("cannot unpack artifacts into {directory:?}: white space"))?;
    tool(Command::new("debugfs").args(["-R", &format!("rdump / {target}")]).arg(image))
        .with_context(|| format!("cannot unpack artifacts into {target}"))?;
    std::fs::remove_dir(directory.join("lost+found")).ok();
    Ok(())
}

fn tool(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}
