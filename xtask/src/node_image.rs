//! Node images: what a node VM boots, made from Debian packages. `images/node/` holds the recipe.

use crate::bootstrap::Root;
use crate::{cache, oci_images, run};
use anyhow::{Context, Result, bail};
use node_vm::{Builder, DiskFormat, Edition, NodeImage};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The root disk's size. It is sparse, so this is what tests may fill, not what it takes.
const DISK_SIZE: &str = "16G";

/// Room for the blockfile snapshotter's disks, sparse too.
const BLOCKFILE_STORE_SIZE: u64 = 8 << 30;

/// Two minutes on an idle machine.
const SEED_DEADLINE: Duration = Duration::from_secs(1200);

/// The devmapper snapshotter's pool: what all of its disks may take together, and room to remember 64 KiB blocks of it.
const THIN_POOL_SIZE: u64 = 8 << 30;
const THIN_POOL_METADATA_SIZE: u64 = 16 << 20;

/// Changed by hand when this file makes a different image from the same recipe.
const RECIPE_VERSION: &str = "2";

/// Modules of the initrd, in loading order: what it takes to see the root disk.
const INITRD_MODULES: &[&str] = &["virtio_blk"];

/// The node image of `edition`, with an empty containerd.
pub fn plain(edition: Edition) -> Result<NodeImage> {
    let inputs = cache::Inputs::default().value("version", RECIPE_VERSION).value("suite", edition.suite());
    let mut inputs = inputs.value("disk size", DISK_SIZE).value("store size", BLOCKFILE_STORE_SIZE.to_string());
    for part in ["packages", "modules", "kernel-hook", "initrd-init", "root", "erofs.toml"] {
        inputs = inputs.path(&recipe().join(part))?;
    }
    let directory = cache::entry(&format!("node-{edition}"), &inputs, |directory| build(edition, directory))?;
    Ok(NodeImage {
        kernel: directory.join("vmlinuz"),
        initrd: directory.join("initrd"),
        disk: directory.join("root.ext4"),
        disk_format: DiskFormat::Raw,
    })
}

/// The node image of `edition` with the test images imported and unpacked: what tests run on.
///
/// Importing takes a minute or two under emulation, so it is done once, in a node whose changes are kept.
pub fn seeded(edition: Edition) -> Result<NodeImage> {
    let plain = plain(edition)?;
    let archives = oci_images::archives()?;
    let script = std::fs::read_to_string(recipe().join("seed")).context("cannot read images/node/seed")?;
    // The cache's directory names stand for the content.
    let base = file_name(plain.disk.parent().context("an image lies in a directory")?)?;
    let inputs = cache::Inputs::default().value("base", &base).value("images", file_name(&archives)?);
    let inputs = inputs.value("seed", &script);
    let directory = cache::entry(&format!("node-{edition}-seeded"), &inputs, |directory| {
        let disk = directory.join("root.qcow2");
        let mut create = Command::new("qemu-img");
        // Relative, so that the cache can be moved.
        create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &format!("../{base}/root.ext4")]);
        run::run(create.arg(&disk))?;
        let image = NodeImage { disk, disk_format: DiskFormat::Qcow2, ..plain.clone() };
        let builder = Builder::new(image).keep_root_changes().share("images", &archives);
        let mut node = builder.artifacts(directory.join("artifacts")).start()?;
        let mut log = std::fs::File::create(directory.join("seed.log"))?;
        let code = node.run(&script, SEED_DEADLINE, &mut log)?;
        node.power_off()?;
        if code != 0 {
            let log = std::fs::read_to_string(directory.join("seed.log")).unwrap_or_default();
            bail!("images/node/seed failed with exit code {code}\n{log}");
        }
        Ok(())
    })?;
    Ok(NodeImage { disk: directory.join("root.qcow2"), disk_format: DiskFormat::Qcow2, ..plain })
}

fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned).with_context(|| format!("{} has no name", path.display()))
}

fn recipe() -> PathBuf {
    run::workspace().join("images/node")
}

fn build(edition: Edition, directory: &Path) -> Result<()> {
    let root = directory.join("root");
    let log = directory.join("build.log");
    let hook = format!("--customize-hook={}", recipe().join("kernel-hook").display());
    let (packages, options) = (recipe().join("packages"), &[hook.as_str()]);
    Root { suite: edition.suite(), variant: "essential", packages: &packages, options }.make(&root, &log)?;
    run::run(Command::new("cp").arg("-a").arg(recipe().join("root/.")).arg(&root))?;
    std::fs::copy(recipe().join("modules"), root.join("etc/node-modules"))?;
    std::os::unix::fs::symlink("../bin/busybox", root.join("usr/sbin/init"))?;

    if edition == Edition::Forky {
        append(&root.join("etc/containerd/config.toml"), &recipe().join("erofs.toml"))?;
    }
    make_blockfile_store(&root, &log)?;
    make_thin_pool(&root)?;

    let release = kernel_release(&root)?;
    prepare_modules(&root, &release, &log)?;
    take_kernel(&root, &release, &directory.join("vmlinuz"))?;
    pack_initrd(&root, &release, directory)?;
    std::fs::remove_dir_all(root.join("boot")).context("cannot remove /boot")?;

    // No journal: the disk of a node is thrown away, or shut down in order.
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-t", "ext4", "-O", "^has_journal", "-E", "nodiscard,lazy_itable_init=1", "-N", "400000", "-d"]);
    run::run_logged(make.arg(&root).arg(directory.join("root.ext4")).arg(DISK_SIZE), &log)?;
    std::fs::remove_dir_all(&root).context("cannot remove the unpacked root")
}

/// The blockfile snapshotter copies a whole disk for each layer and each container. On XFS the copy shares its
/// extents and takes no time; on ext4 it would take seconds and half a gigabyte.
fn make_blockfile_store(root: &Path, log: &Path) -> Result<()> {
    let store = root.join("var/lib/blockfile.xfs");
    std::fs::File::create(&store)?.set_len(BLOCKFILE_STORE_SIZE)?;
    run::run_logged(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&store), log)?;
    std::fs::create_dir(root.join("var/lib/blockfile"))?;
    Ok(())
}

/// An empty metadata file is a pool without disks.
fn make_thin_pool(root: &Path) -> Result<()> {
    let directory = root.join("var/lib/devmapper");
    std::fs::create_dir(&directory)?;
    std::fs::File::create(directory.join("metadata"))?.set_len(THIN_POOL_METADATA_SIZE)?;
    std::fs::File::create(directory.join("data"))?.set_len(THIN_POOL_SIZE)?;
    Ok(())
}

fn append(to: &Path, part: &Path) -> Result<()> {
    let text = std::fs::read(part).with_context(|| format!("cannot read {}", part.display()))?;
    let mut file = std::fs::File::options().append(true).open(to)?;
    std::io::Write::write_all(&mut file, &text).with_context(|| format!("cannot write to {}", to.display()))
}

fn kernel_release(root: &Path) -> Result<String> {
    let modules = root.join("usr/lib/modules");
    let mut entries = std::fs::read_dir(&modules).with_context(|| format!("cannot list {}", modules.display()))?;
    let entry = entries.next().context("the kernel package brought no modules")??;
    entry.file_name().into_string().ok().context("the kernel's release is not UTF-8")
}

/// Debian moved the kernel from /boot to the modules' directory after trixie.
fn take_kernel(root: &Path, release: &str, to: &Path) -> Result<()> {
    let places = [format!("boot/vmlinuz-{release}"), format!("usr/lib/modules/{release}/vmlinuz")];
    let place = places.iter().map(|place| root.join(place)).find(|path| path.is_file());
    let place = place.with_context(|| format!("the kernel's package has none of {places:?}"))?;
    std::fs::rename(&place, to).with_context(|| format!("cannot move {}", place.display()))
}

/// Unpacks every module: xz takes seconds of boot time under emulation.
fn prepare_modules(root: &Path, release: &str, log: &Path) -> Result<()> {
    let modules = root.join("usr/lib/modules").join(release);
    let mut unpack = Command::new("find");
    unpack.arg(&modules).args(["-name", "*.ko.xz", "-exec", "xz", "--decompress", "{}", "+"]);
    run::run_logged(&mut unpack, log)?;
    run::run_logged(Command::new("depmod").arg("-b").arg(root).arg(release), log)
}

fn pack_initrd(root: &Path, release: &str, directory: &Path) -> Result<()> {
    let tree = directory.join("initrd.tree");
    for part in ["bin", "dev", "modules", "root"] {
        std::fs::create_dir_all(tree.join(part))?;
    }
    std::fs::copy(root.join("usr/bin/busybox"), tree.join("bin/busybox"))?;
    std::fs::copy(recipe().join("initrd-init"), tree.join("init"))?;
    for (position, module) in INITRD_MODULES.iter().enumerate() {
        let mut find = Command::new("modinfo");
        find.arg("-b").arg(root).args(["-k", release, "-n", module]);
        let path = run::output(&mut find)?;
        std::fs::copy(path.trim(), tree.join(format!("modules/{position}-{module}.ko")))?;
    }
    let archive = std::fs::File::create(directory.join("initrd"))?;
    let mut find = Command::new("find").arg(".").current_dir(&tree).stdout(std::process::Stdio::piped()).spawn()?;
    let names = find.stdout.take().context("find has no output")?;
    let mut pack = Command::new("cpio");
    pack.args(["--create", "--format=newc", "--quiet"]).current_dir(&tree).stdin(names).stdout(archive);
    let status = pack.status().context("cannot run cpio")?;
    anyhow::ensure!(find.wait()?.success() && status.success(), "cpio failed: {status}");
    std::fs::remove_dir_all(&tree).context("cannot remove the initrd's tree")
}
