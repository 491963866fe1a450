//! OCI images that tests run, made from Debian packages. `images/oci/` holds the recipe.

use crate::bootstrap::Root;
use crate::{cache, debian, oci_layout, run};
use anyhow::{Context, Result};
use oci_layout::Image;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The suite of the images' packages, whatever the node's edition.
const SUITE: &str = "trixie";

/// Changed by hand when this file makes different images from the same recipe.
const RECIPE_VERSION: &str = "3";

/// Half of the Debian image's size, and nothing that runs: software rendering, which only stress-ng's unused graphics
/// test would load.
const UNWANTED: &[&str] = &[
    "lib/x86_64-linux-gnu/libLLVM*",
    "lib/x86_64-linux-gnu/libgallium*",
    "lib/x86_64-linux-gnu/libz3*",
    "share/X11/*",
];

/// The directory with the image archives, each a file `*.tar`.
pub fn archives() -> Result<PathBuf> {
    let inputs = cache::Inputs::default()
        .value("version", RECIPE_VERSION)
        .value("suite", SUITE)
        .value("unwanted", UNWANTED.join(" "));
    let inputs = inputs.path(&packages_file())?;
    cache::entry("oci-images", &inputs, |directory| {
        busybox(directory).context("cannot make the busybox images")?;
        debian(directory).context("cannot make the Debian image")
    })
}

fn packages_file() -> PathBuf {
    run::workspace().join("images/oci/debian-packages")
}

fn busybox(directory: &Path) -> Result<()> {
    let scratch = tempfile::tempdir_in(directory)?;
    let package = scratch.path().join("package");
    debian::Suite::open(SUITE)?.unpack("busybox-static", &package)?;
    let root = scratch.path().join("root");
    for part in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var"] {
        std::fs::create_dir_all(root.join(part))?;
    }
    for (link, target) in [("sbin", "bin"), ("usr/bin", "../bin"), ("usr/sbin", "../bin")] {
        std::os::unix::fs::symlink(target, root.join(link))?;
    }
    let binary = root.join("bin/busybox");
    std::fs::copy(package.join("usr/bin/busybox"), &binary)?;
    for applet in run::output(Command::new(&binary).arg("--list"))?.lines().filter(|name| *name != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    )?;
    std::fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    run::run(Command::new("chmod").arg("1777").arg(root.join("tmp")))?;

    let layer = scratch.path().join("layer.tar");
    pack_layer(&root, &layer)?;
    let images = [
        Image { name: "bulkhead.test/busybox:latest", layer: &layer, command: &["sh"] },
        Image { name: "bulkhead.test/nocmd:latest", layer: &layer, command: &[] },
        Image { name: "bulkhead.test/pause:latest", layer: &layer, command: &["sleep", "infinity"] },
    ];
    oci_layout::write(&directory.join("busybox.tar"), &images)
}

fn debian(directory: &Path) -> Result<()> {
    let scratch = tempfile::tempdir_in(directory)?;
    let (root, layer) = (scratch.path().join("root"), scratch.path().join("layer.tar"));
    let options: Vec<String> = UNWANTED.iter().map(|path| format!("--dpkgopt=path-exclude=/usr/{path}")).collect();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let packages = packages_file();
    let recipe = Root { suite: SUITE, variant: "minbase", packages: &packages, options: &options };
    recipe.make(&root, &directory.join("debian.log"))?;
    pack_layer(&root, &layer)?;
    let image = Image { name: "bulkhead.test/debian:latest", layer: &layer, command: &["bash"] };
    oci_layout::write(&directory.join("debian.tar"), &[image])
}

/// Archives a root file system without its device nodes, which come from the runtime.
fn pack_layer(root: &Path, layer: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--sort=name", "--mtime=@0", "--numeric-owner", "--exclude=./dev/*", "--file"]);
    run::run(tar.arg(layer).arg("-C").arg(root).arg("."))
}
