//! What the node gets: our programs and images, and a root with QEMU in it.

use crate::bench::images;
use crate::cache::{self, Inputs};
use crate::{dist, kernel, run};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Changed by hand when this file makes a different image from the same init.
const RECIPE_VERSION: &str = "1";

/// As our VMM wants a root image: a whole number of 2 MiB.
const ALIGNMENT: u64 = 2 << 20;

#[derive(Debug)]
pub struct Payload {
    /// A Debian root.
    pub qemu: PathBuf,
    files: TempDir,
}

impl Payload {
    pub fn files(&self) -> &Path {
        self.files.path()
    }
}

pub fn make() -> Result<Payload> {
    let qemu = images::tools()?;
    let bundle = dist::bundle()?.directory;
    let programs = dist::bench_programs()?;
    let files = tempfile::Builder::new().prefix("bench-").tempdir_in("/var/tmp")?;
    let sources = [
        ("bench", programs.join("bench")),
        ("bulkhead-vmm", bundle.join("bin/bulkhead-vmm")),
        ("vmlinux", bundle.join("share/vmlinux")),
        ("guest.erofs", bundle.join("share/guest.erofs")),
        ("vmlinux-bench", kernel::bench_vmlinux()?),
        ("init.erofs", init_image(&programs.join("bench-init"))?),
    ];
    for (name, from) in sources {
        let copied = fs::copy(&from, files.path().join(name));
        copied.with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(Payload { qemu, files })
}

/// A root image with nothing but an init.
fn init_image(init: &Path) -> Result<PathBuf> {
    let inputs = Inputs::default().value("version", RECIPE_VERSION).path(init)?;
    let entry = cache::entry("bench-init", &inputs, |into| {
        let root = into.join("root");
        for directory in ["dev", "proc", "sys"] {
            fs::create_dir_all(root.join(directory))?;
        }
        fs::copy(init, root.join("init"))?;
        let image = into.join("init.erofs");
        let mut make = Command::new("mkfs.erofs");
        run::run(make.args(["--quiet", "-T0", "-Enoinline_data", "--all-root"]).arg(&image).arg(&root))?;
        let file = fs::File::options().write(true).open(&image)?;
        Ok(file.set_len(file.metadata()?.len().next_multiple_of(ALIGNMENT))?)
    })?;
    Ok(entry.join("init.erofs"))
}
