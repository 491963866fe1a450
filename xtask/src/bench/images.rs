//! What the node gets for benchmarks: a root with QEMU to chroot into, and the measured guest's image.

use crate::bootstrap::Root;
use crate::cache::{self, Inputs};
use crate::{guest_image, run};
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

const SUITE: &str = "trixie";

/// Changed by hand when this file makes different images from the same recipe.
const RECIPE_VERSION: &str = "1";

const APPLETS: [&str; 6] = ["sh", "mount", "cat", "sleep", "grep", "reboot"];

/// Programs with shared libraries. The date is Debian's own: busybox tells no nanoseconds.
const PROGRAMS: [&str; 2] = ["fio", "date"];

pub fn recipe() -> PathBuf {
    run::workspace().join("images/bench")
}

/// A Debian root with QEMU and fio.
pub fn tools() -> Result<PathBuf> {
    let packages = recipe().join("packages");
    let inputs = Inputs::default().value("version", RECIPE_VERSION).value("suite", SUITE).path(&packages)?;
    let entry = cache::entry("bench-tools", &inputs, |into| {
        let recipe = Root { suite: SUITE, variant: "essential", packages: &packages, options: &[] };
        recipe.make(&into.join("root"), &into.join("build.log"))
    })?;
    Ok(entry.join("root"))
}

/// The guest's root image: fio, busybox and an init that runs the jobs.
pub fn guest(tools: &Path) -> Result<PathBuf> {
    let inputs = Inputs::default().value("version", RECIPE_VERSION).value("applets", APPLETS.join(" "));
    let inputs = inputs.value("programs", PROGRAMS.join(" ")).value("mkfs", guest_image::MKFS.join(" "));
    // The cache's directory names stand for the content.
    let inputs =
        inputs.value("tools", tools.parent().context("the tools' root has no parent")?.as_os_str().as_encoded_bytes());
    let inputs = inputs.path(&recipe().join("guest-init"))?.path(&recipe().join("jobs"))?;
    let entry = cache::entry("bench-guest", &inputs, |into| {
        let scratch = tempfile::tempdir_in(into)?;
        let root = scratch.path().join("root");
        lay_out(&root, tools)?;
        guest_image::make_image(&root, &into.join("guest.erofs"))
    })?;
    Ok(entry.join("guest.erofs"))
}

fn lay_out(root: &Path, tools: &Path) -> Result<()> {
    for directory in ["bin", "dev", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy(tools.join("usr/bin/busybox"), root.join("bin/busybox")).context("no busybox among the tools")?;
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    for program in PROGRAMS {
        let from = tools.join("usr/bin").join(program);
        fs::copy(&from, root.join("bin").join(program)).with_context(|| format!("no {program} among the tools"))?;
        let mut ldd = Command::new("chroot");
        let libraries = run::output(ldd.arg(tools).args(["ldd", &format!("/usr/bin/{program}")]))?;
        for library in absolute_paths(&libraries) {
            copy_library(tools, library.trim_start_matches('/'), root)?;
        }
    }
    fs::copy(recipe().join("guest-init"), root.join("init"))?;
    run::run(Command::new("chmod").arg("755").arg(root.join("init")))?;
    fs::copy(recipe().join("jobs"), root.join("jobs"))?;
    Ok(())
}

fn copy_library(tools: &Path, library: &str, root: &Path) -> Result<()> {
    let place = root.join(library);
    fs::create_dir_all(place.parent().context("a library lies in a directory")?)?;
    fs::copy(tools.join(library), &place).map(drop).with_context(|| format!("cannot copy {library}"))
}

/// The files that ldd names: `name => /path (address)`, and `/path (address)` for the loader.
fn absolute_paths(ldd: &str) -> impl Iterator<Item = &str> {
    ldd.split_whitespace().filter(|word| word.starts_with('/'))
}

#[cfg(test)]
mod tests {
    #[test]
    fn ldd_names_libraries_and_the_loader() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ff)\n\tlibc.so.6 => /lib/a/libc.so.6 (0x1)\n\t/lib64/ld.so.2 (0x2)\n";
        let found: Vec<&str> = super::absolute_paths(ldd).collect();
        assert_eq!(found, ["/lib/a/libc.so.6", "/lib64/ld.so.2"]);
    }
}
