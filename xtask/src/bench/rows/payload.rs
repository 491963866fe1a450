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
    pub qemu: Option<PathBuf>,
    files: TempDir,
}

impl Payload {
    pub fn files(&self) -> &Path {
        self.files.path()
    }

    fn add(&self, name: &str, from: &Path) -> Result<()> {
        let copied = fs::copy(from, self.files().join(name));
        copied.map(drop).with_context(|| format!("cannot copy {}", from.display()))
    }
}

/// `compared`: with what the comparison of VMMs takes.
pub fn make(compared: bool) -> Result<Payload> {
    let qemu = if compared { Some(images::tools()?) } else { None };
    let dist::Bundle { archive, directory: bundle } = dist::bundle()?;
    let programs = dist::bench_programs()?;
    let payload = Payload { qemu, files: tempfile::Builder::new().prefix("bench-").tempdir_in("/var/tmp")? };
    payload.add("bench", &programs.join("bench"))?;
    payload.add("bulkhead.tar.gz", &archive)?;
    payload.add("bulkhead-vmm", &bundle.join("bin/bulkhead-vmm"))?;
    payload.add("vmlinux", &bundle.join("share/vmlinux"))?;
    payload.add("guest.erofs", &bundle.join("share/guest.erofs"))?;
    if compared {
        payload.add("vmlinux-bench", &kernel::bench_vmlinux()?)?;
        payload.add("init.erofs", &init_image(&programs.join("bench-init"))?)?;
    }
    Ok(payload)
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
