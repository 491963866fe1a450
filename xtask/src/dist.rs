//! The bundle: everything that a node with containerd and KVM needs, in one archive.

use crate::cache::{self, Inputs};
use crate::{crun, guest_image, kernel, run, scratch_image};
use anyhow::{Context, Result};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Programs of the node. The agent goes into the guest image instead.
const NODE_BINARIES: [&str; 4] = ["containerd-shim-bulkhead-v2", "bulkhead-vmm", "bulkhead-fsd", "bulkhead"];
const AGENT: &str = "bulkhead-agent";

/// Where the bundle is: as an archive for nodes, and unpacked for tests.
pub struct Bundle {
    pub archive: PathBuf,
    pub directory: PathBuf,
}

/// One file of the bundle: its place, its permissions, and where it comes from.
struct Item {
    place: String,
    mode: u32,
    from: PathBuf,
}

/// Builds whatever is missing or old and packs it. Nothing is packed again when nothing changed.
pub fn bundle() -> Result<Bundle> {
    eprintln!("dist: building the programs");
    let programs = build_programs()?;
    let vmlinux = kernel::vmlinux()?;
    let image = guest_image::build(&programs.join(AGENT), &crun::binary()?)?;
    pack(&items(&programs, vmlinux, image, scratch_image::build()?))
}

/// The guest image with `agent`, or with the agent of this checkout.
pub fn guest_image(agent: Option<&Path>) -> Result<PathBuf> {
    let agent = match agent {
        Some(path) => path.to_path_buf(),
        None => build_programs()?.join(AGENT),
    };
    guest_image::build(&agent, &crun::binary()?)
}

fn build_programs() -> Result<PathBuf> {
    let mut cargo = run::cargo();
    cargo.args(["build", "--release", "--target", TARGET]);
    for program in NODE_BINARIES.iter().chain([&AGENT]) {
        cargo.args(["--package", program]);
    }
    run::run(&mut cargo)?;
    Ok(target_directory().join(TARGET).join("release"))
}

/// The directory with what benchmarks run in the node (`tests/bench`).
pub fn bench_programs() -> Result<PathBuf> {
    run::run(run::cargo().args(["build", "--release", "--target", TARGET, "--package", "bench"]))?;
    Ok(target_directory().join(TARGET).join("release"))
}

fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| run::workspace().join("target"), PathBuf::from)
}

fn items(programs: &Path, vmlinux: PathBuf, image: PathBuf, scratch: PathBuf) -> Vec<Item> {
    let item = |place: &str, mode, from| Item { place: place.to_owned(), mode, from };
    let mut items = vec![
        item("share/vmlinux", 0o644, vmlinux),
        item("share/guest.erofs", 0o644, image),
        item("share/scratch.ext4", 0o644, scratch),
        item("LICENSE", 0o644, run::workspace().join("LICENSE")),
        item("runtimeclass.yaml", 0o644, run::workspace().join("runtimeclass.yaml")),
    ];
    items.extend(NODE_BINARIES.map(|name| item(&format!("bin/{name}"), 0o755, programs.join(name))));
    items
}

fn pack(items: &[Item]) -> Result<Bundle> {
    let dist = target_directory().join("dist");
    let bundle =
        Bundle { archive: dist.join(format!("bulkhead-{VERSION}-x86_64.tar.gz")), directory: dist.join("bulkhead") };
    fs::create_dir_all(&dist)?;
    let _lock = cache::lock(&dist.join("lock"))?;
    let stamp = dist.join("packed");
    let mut inputs = Inputs::default().value("version", VERSION);
    for item in items {
        inputs = inputs.value(&item.place, item.mode.to_le_bytes()).path(&item.from)?;
    }
    let digest = inputs.digest();
    if bundle.archive.exists() && fs::read_to_string(&stamp).is_ok_and(|packed| packed == digest) {
        return Ok(bundle);
    }
    eprintln!("dist: packing");
    lay_out(items, &bundle.directory)?;
    archive(&bundle)?;
    fs::write(&stamp, digest)?;
    Ok(bundle)
}

fn lay_out(items: &[Item], directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("cannot replace {}", directory.display()))?;
    }
    for part in ["bin", "share"] {
        fs::create_dir_all(directory.join(part))?;
    }
    fs::write(directory.join("VERSION"), format!("{VERSION}\n"))?;
    for item in items {
        let place = directory.join(&item.place);
        fs::copy(&item.from, &place).with_context(|| format!("cannot copy {}", item.from.display()))?;
        fs::set_permissions(&place, Permissions::from_mode(item.mode))?;
    }
    Ok(())
}

/// Names sorted, no times, no owners: the same files give the same archive.
fn archive(bundle: &Bundle) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "--mode=go-w"]);
    tar.arg("--use-compress-program=gzip -n").arg("-cf").arg(&bundle.archive);
    run::run(tar.arg("-C").arg(bundle.directory.parent().context("the bundle has no parent")?).arg("bulkhead"))
}
