//! The guest kernel: Debian's source, our fragments, nothing else.
//!
//! The result is kept by the hash of the fragments and the recipe, not by Debian's point release: a machine
//! that has a kernel keeps it until somebody changes what is asked for.

use crate::cache::{self, Inputs};
use crate::{debian, run};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const SUITE: &str = "trixie";
const PACKAGE: &str = "linux-source-6.12";

/// In the order in which a reader meets them. An option belongs to one fragment only.
const FRAGMENTS: [&str; 6] =
    ["base.config", "virtio.config", "container.config", "storage.config", "network.config", "debug.config"];

/// What the kernel of benchmarks has on top: devices that only other VMMs have.
const BENCH: &str = "bench.config";

/// The same input gives the same bytes on every machine with the same compiler.
const REPRODUCIBLE: [&str; 3] =
    ["KBUILD_BUILD_TIMESTAMP=@0", "KBUILD_BUILD_USER=bulkhead", "KBUILD_BUILD_HOST=bulkhead"];

/// Without symbols and debug tables; the segments that the VMM maps stay as linked.
const STRIP: [&str; 2] = ["--strip-all", "--remove-section=.comment"];

/// Files that a build compiles, for the progress line. A few more or less do no harm.
const COMPILED_FILES: usize = 1400;

/// The path of the uncompressed kernel, built first if the cache has none.
pub fn vmlinux() -> Result<PathBuf> {
    cached("kernel", &FRAGMENTS)
}

/// The same with the devices of the VMMs that benchmarks compare with.
pub fn bench_vmlinux() -> Result<PathBuf> {
    cached("kernel-bench", &[&FRAGMENTS[..], &[BENCH]].concat())
}

fn cached(name: &str, names: &[&str]) -> Result<PathBuf> {
    let mut inputs = Inputs::default().value("package", format!("{SUITE}/{PACKAGE}")).value("strip", STRIP.join(" "));
    inputs = inputs.value("make", REPRODUCIBLE.join(" "));
    for fragment in names {
        inputs = inputs.path(&fragments().join(fragment))?;
    }
    Ok(cache::entry(name, &inputs, |into| build(into, names))?.join("vmlinux"))
}

fn fragments() -> PathBuf {
    run::workspace().join("kernel-config")
}

fn build(into: &Path, names: &[&str]) -> Result<()> {
    let wanted = read_fragments(names)?;
    let scratch = tempfile::tempdir_in(into)?;
    let tree = unpack(scratch.path())?;
    configure(&tree, &wanted)?;
    compile(&tree, &into.join("build.log"))?;
    run::run(Command::new("objcopy").args(STRIP).arg(tree.join("vmlinux")).arg(into.join("vmlinux")))?;
    std::fs::copy(tree.join(".config"), into.join("config"))?;
    Ok(())
}

fn unpack(scratch: &Path) -> Result<PathBuf> {
    eprintln!("kernel: fetching {PACKAGE}");
    debian::Suite::open(SUITE)?.unpack(PACKAGE, scratch)?;
    eprintln!("kernel: unpacking");
    let archive = scratch.join(format!("usr/src/{PACKAGE}.tar.xz"));
    run::run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(scratch))?;
    Ok(scratch.join(PACKAGE))
}

/// Everything off, then what the fragments name, then a check that nothing was dropped on the way.
fn configure(tree: &Path, wanted: &Options) -> Result<()> {
    let fragment = tree.join("bulkhead.config");
    std::fs::write(&fragment, wanted.iter().map(|(name, value)| format!("{name}={value}\n")).collect::<String>())?;
    let mut make = make(tree);
    run::run_logged(make.env("KCONFIG_ALLCONFIG", &fragment).arg("allnoconfig"), &tree.join("config.log"))?;
    let result = std::fs::read_to_string(tree.join(".config")).context("make allnoconfig left no .config")?;
    let refused = refused(wanted, &parse("the result", &result)?);
    if !refused.is_empty() {
        bail!("kernel options that did not take (a dependency is missing or off):\n  {}", refused.join("\n  "));
    }
    Ok(())
}

fn compile(tree: &Path, log: &Path) -> Result<()> {
    let jobs = std::thread::available_parallelism()?;
    let mut make = make(tree);
    make.arg(format!("-j{jobs}")).arg("vmlinux");
    run::run_counted(&mut make, log, |text| {
        let compiled = text.lines().filter(|line| line.starts_with("  CC ") || line.starts_with("  AS ")).count();
        format!("kernel: {compiled} of about {COMPILED_FILES} files compiled")
    })
}

fn make(tree: &Path) -> Command {
    let mut make = Command::new("make");
    make.arg("-C").arg(tree).args(REPRODUCIBLE);
    make
}

/// Option names with their values; an option that must stay off has the value `n`.
type Options = BTreeMap<String, String>;

fn read_fragments(names: &[&str]) -> Result<Options> {
    let mut options = Options::new();
    for fragment in names {
        let path = fragments().join(fragment);
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for (name, value) in parse(fragment, &text)? {
            if options.insert(name.clone(), value).is_some() {
                bail!("{name} in {fragment} is already in another fragment");
            }
        }
    }
    Ok(options)
}

fn parse(source: &str, text: &str) -> Result<Options> {
    let mut options = Options::new();
    for line in text.lines() {
        let off = line.strip_prefix("# ").and_then(|rest| rest.strip_suffix(" is not set"));
        let (name, value) = match (off, line.split_once('=')) {
            (Some(name), _) if name.starts_with("CONFIG_") => (name, "n"),
            _ if line.is_empty() || line.starts_with('#') => continue,
            (_, Some((name, value))) if name.starts_with("CONFIG_") => (name, value),
            _ => bail!("{source}: not an option: {line}"),
        };
        if options.insert(name.to_owned(), value.to_owned()).is_some() {
            bail!("{source}: {name} is there twice");
        }
    }
    Ok(options)
}

/// The options that the final configuration has differently; an option it doesn't mention is off.
fn refused(wanted: &Options, result: &Options) -> Vec<String> {
    let mut refused = Vec::new();
    for (name, value) in wanted {
        let got = result.get(name).map_or("n", String::as_str);
        if got != value {
            refused.push(format!("{name}={value} became {got}"));
        }
    }
    refused
}

#[cfg(test)]
mod tests {
    use super::{parse, refused};

    #[test]
    fn an_option_that_did_not_take_is_named() {
        let wanted = parse("fragment", "CONFIG_A=y\nCONFIG_B=64\nCONFIG_C=y\n# CONFIG_D is not set\n").unwrap();
        let result = parse("result", "# a comment\nCONFIG_A=y\nCONFIG_B=32\n# CONFIG_C is not set\n").unwrap();
        assert_eq!(refused(&wanted, &result), ["CONFIG_B=64 became 32", "CONFIG_C=y became n"]);
    }

    #[test]
    fn an_option_that_must_be_off_and_came_back_is_named() {
        let wanted = parse("fragment", "# CONFIG_MODULES is not set\n").unwrap();
        let result = parse("result", "CONFIG_MODULES=y\n").unwrap();
        assert_eq!(refused(&wanted, &result), ["CONFIG_MODULES=n became y"]);
    }

    #[test]
    fn a_line_that_is_no_option_is_an_error() {
        assert!(parse("fragment", "COFNIG_A=y\n").is_err());
        assert!(parse("fragment", "CONFIG_A=y\nCONFIG_A=n\n").is_err());
    }

    #[test]
    fn the_fragments_agree_with_each_other() {
        super::read_fragments(&[&super::FRAGMENTS[..], &[super::BENCH]].concat()).unwrap();
    }
}
