//! crun for the guest: static, from Debian's source package, without what the guest doesn't have.

use crate::cache::{self, Inputs};
use crate::{debian, run};
use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

const SUITE: &str = "trixie";
const PACKAGE: &str = "crun";

/// There is neither systemd nor checkpointing in the guest, and nothing is loaded at run time.
const CONFIGURE: [&str; 6] = [
    "--disable-systemd",
    "--disable-criu",
    "--disable-dl",
    "--disable-shared",
    "--enable-static",
    "--enable-embedded-yajl",
];

/// The path of the static binary, built first if the cache has none.
pub fn binary() -> Result<PathBuf> {
    let inputs =
        Inputs::default().value("package", format!("{SUITE}/{PACKAGE}")).value("configure", CONFIGURE.join(" "));
    Ok(cache::entry("crun", &inputs, build)?.join("crun"))
}

fn build(into: &Path) -> Result<()> {
    let scratch = tempfile::tempdir_in(into)?;
    let log = into.join("build.log");
    eprintln!("crun: fetching the source package");
    let tree = debian::Suite::open(SUITE)?.unpack_source(PACKAGE, scratch.path())?;
    eprintln!("crun: building");
    run::run_logged(Command::new("./configure").args(CONFIGURE).current_dir(&tree), &log)?;
    // `-all-static` is libtool's word: configure's own test programs would not link with it.
    let jobs = format!("-j{}", std::thread::available_parallelism()?);
    run::run_logged(Command::new("make").args([&jobs, "LDFLAGS=-all-static"]).current_dir(&tree), &log)?;
    let binary = into.join("crun");
    run::run(Command::new("strip").arg("-o").arg(&binary).arg(tree.join("crun")))?;
    check(&binary)
}

fn check(binary: &Path) -> Result<()> {
    let version = run::output(Command::new(binary).arg("--version"))?;
    ensure!(version.contains("+SECCOMP"), "crun was built without seccomp: {version}");
    let headers = run::output(Command::new("readelf").args(["--program-headers", "--wide"]).arg(binary))?;
    ensure!(!headers.contains("INTERP"), "crun is not static: it asks for a dynamic loader");
    Ok(())
}
