//! The shim's binary: chooses the action and reports its error the way that containerd shows it.

use bulkhead_shim::args::{Action, Arguments};
use bulkhead_shim::log::with_causes;
use bulkhead_shim::{delete, info, serve, start, template};
use std::error::Error;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd puts its own words around it.
            eprint!("{}", with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let output = match arguments.action {
        Action::Version => info::version().into_bytes(),
        Action::Info => info::info(&input()?)?,
        Action::Start => start::start(&arguments, &bundle(&arguments)?, &input()?)?,
        Action::Delete => delete::delete(&arguments, &bundle(&arguments)?)?,
        Action::Template => return Ok(template::build(false)?),
        Action::EnsureTemplate => return Ok(template::build(true)?),
        Action::CheckTemplate => template::check()?.into_bytes(),
        Action::Serve => return Ok(serve::serve(&arguments)?),
    };
    Ok(io::stdout().write_all(&output)?)
}

fn bundle(arguments: &Arguments) -> io::Result<PathBuf> {
    if arguments.bundle.as_os_str().is_empty() { std::env::current_dir() } else { Ok(arguments.bundle.clone()) }
}

fn input() -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::stdin().take(start::MAX_INPUT).read_to_end(&mut bytes)?;
    Ok(bytes)
}
