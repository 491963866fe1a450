//! The guest's root: a read-only EROFS image with the agent, crun and empty directories.
//!
//! The guest maps the image's pages in place (DAX), so nothing in it is compressed or stored inline. The same
//! files give the same bytes: owner, times and the file system's id are fixed.

use crate::cache::{self, Inputs};
use crate::run;
use anyhow::{Context, Result};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A pmem region must be a multiple of this, which is also what lets the host map it with huge pages.
const ALIGNMENT: u64 = 2 << 20;

/// `noinline_data` keeps the tails of files in blocks of their own: DAX maps whole pages.
pub const MKFS: [&str; 7] =
    ["--quiet", "-x-1", "-T0", "-Enoinline_data", "--all-root", "-U", "b01c4ead-0000-4000-8000-000000000000"];

/// Mount points, and what the agent expects to exist before it mounts anything.
const DIRECTORIES: [(&str, u32); 12] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("mnt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("var", 0o755),
    ("var/lib", 0o755),
];

/// The content of `images/guest/etc`, and links to files that the agent writes at run time.
const LINKS: [(&str, &str); 2] = [("etc/resolv.conf", "/run/resolv.conf"), ("etc/mtab", "/proc/self/mounts")];

/// The path of the image with `agent` as its init, built first if the cache has none.
pub fn build(agent: &Path, crun: &Path) -> Result<PathBuf> {
    let etc = run::workspace().join("images/guest/etc");
    let inputs = Inputs::default()
        .value("mkfs", MKFS.join(" "))
        .value("directories", format!("{DIRECTORIES:?} {LINKS:?}"))
        .path(&etc)?
        .path(agent)?
        .path(crun)?;
    let entry = cache::entry("guest-image", &inputs, |into| {
        let scratch = tempfile::tempdir_in(into)?;
        let root = scratch.path().join("root");
        lay_out(&root, agent, crun, &etc)?;
        make_image(&root, &into.join("guest.erofs"))
    })?;
    Ok(entry.join("guest.erofs"))
}

fn lay_out(root: &Path, agent: &Path, crun: &Path, etc: &Path) -> Result<()> {
    fs::create_dir(root)?;
    fs::set_permissions(root, Permissions::from_mode(0o755))?;
    for (directory, mode) in DIRECTORIES {
        let path = root.join(directory);
        fs::create_dir(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
    }
    install(agent, &root.join("init"), 0o755)?;
    install(crun, &root.join("usr/bin/crun"), 0o755)?;
    for file in fs::read_dir(etc).with_context(|| format!("cannot list {}", etc.display()))? {
        let file = file?;
        install(&file.path(), &root.join("etc").join(file.file_name()), 0o644)?;
    }
    for (name, target) in LINKS {
        symlink(target, root.join(name))?;
    }
    Ok(())
}

fn install(from: &Path, to: &Path, mode: u32) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    fs::set_permissions(to, Permissions::from_mode(mode))?;
    Ok(())
}

/// A root image as the VMM maps it, of what is in `root`.
pub fn make_image(root: &Path, image: &Path) -> Result<()> {
    run::run(Command::new("mkfs.erofs").args(MKFS).arg(image).arg(root))?;
    let file = fs::File::options().write(true).open(image)?;
    file.set_len(file.metadata()?.len().next_multiple_of(ALIGNMENT))?;
    Ok(())
}
