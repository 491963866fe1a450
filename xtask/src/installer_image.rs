//! The image that puts Bulkhead on a cluster's nodes: the bundle and nothing else. images/installer/ says how it is used.

use crate::oci_layout::Image;
use crate::{dist, oci_layout, run};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

/// As in the manifest; operators copy it to a registry of theirs.
const NAME: &str = concat!("bulkhead.io/installer:", env!("CARGO_PKG_VERSION"));

/// Where the manifest mounts the node's root directory.
const COMMAND: [&str; 4] = ["/bulkhead/bin/bulkhead", "daemon", "--root", "/host"];

/// The archive, made again each time: it is packed from the bundle in seconds.
pub fn archive() -> Result<PathBuf> {
    let bundle = dist::bundle()?;
    let dist = bundle.archive.parent().context("the bundle lies in a directory")?;
    let scratch = tempfile::tempdir_in(dist)?;
    let layer = scratch.path().join("layer.tar");
    let mut tar = Command::new("tar");
    tar.args(["--create", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--mode=go-w"]);
    let parent = bundle.directory.parent().context("the unpacked bundle lies in a directory")?;
    run::run(tar.arg("--file").arg(&layer).arg("-C").arg(parent).arg("bulkhead"))?;
    let archive = dist.join(concat!("bulkhead-installer-", env!("CARGO_PKG_VERSION"), "-x86_64.oci.tar"));
    oci_layout::write(&archive, &[Image { name: NAME, layer: &layer, command: &COMMAND }])?;
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_runs_this_image() {
        let manifest = "deploy/install/bulkhead.yaml";
        let text = std::fs::read_to_string(run::workspace().join(manifest)).unwrap();
        assert!(text.contains(&format!("image: {NAME}\n")), "{manifest} names another image");
        let command = COMMAND.map(|word| format!("\"{word}\"")).join(", ");
        assert!(text.contains(&format!("command: [{command}]\n")), "{manifest} runs another command");
    }
}
