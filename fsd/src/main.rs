//! `bulkhead-fsd --root <directory>`: descriptor 0 is the socket, descriptor 2 the log, one line per message.

use anyhow::{Context, bail};
use bulkhead_fsd::{jail, serve};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ERROR {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let root = parse_arguments(std::env::args_os().skip(1))?;
    serve::prepare(&std::io::stdin())?;
    let share = jail::enter(&root).with_context(|| format!("cannot enter the jail in {}", root.display()))?;
    serve::run(&share).context("cannot serve")
}

fn parse_arguments(mut arguments: impl Iterator<Item = OsString>) -> anyhow::Result<PathBuf> {
    let usage = "usage: bulkhead-fsd --root <directory>";
    match (arguments.next(), arguments.next(), arguments.next()) {
        (Some(option), Some(root), None) if option == "--root" => {
            let root = PathBuf::from(root);
            if !root.is_absolute() {
                bail!("--root must be an absolute path, not {}", root.display());
            }
            Ok(root)
        }
        _ => bail!(usage),
    }
}
