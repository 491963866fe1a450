//! How containerd names one end of a channel.

use std::io;
use std::path::{Path, PathBuf};

/// Most arguments of a logger.
const MAX_ARGUMENTS: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Nothing is connected.
    Null,
    Fifo(PathBuf),
    /// Output is appended to a file.
    File(PathBuf),
    /// Output goes to a program.
    Logger(Logger),
}

/// A program that takes a container's output: `binary:///path?key=value&…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logger {
    pub program: PathBuf,
    /// Keys and values, in order.
    pub arguments: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    #[error("{0:?} is not a FIFO, file:// or binary:// address")]
    Address(String),
    #[error("{0:?} can't be an input: only a FIFO can")]
    NotAnInput(String),
    #[error("stdout and stderr name different loggers, and one serves both")]
    TwoLoggers,
    #[error("cannot open {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot run the logger {program}")]
    Logger { program: PathBuf, source: io::Error },
}

impl StdioError {
    pub(super) fn open(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Open { path, source }
    }
}

impl Endpoint {
    pub fn parse(text: &str) -> Result<Self, StdioError> {
        let refused = || StdioError::Address(text.chars().take(128).collect());
        let absolute = |path: PathBuf| if path.is_absolute() { Ok(path) } else { Err(refused()) };
        match text.split_once("://") {
            None if text.is_empty() => Ok(Self::Null),
            None => absolute(text.into()).map(Self::Fifo),
            Some(("fifo", path)) => absolute(path.into()).map(Self::Fifo),
            Some(("file", path)) => absolute(unescape(path).ok_or_else(refused)?.into()).map(Self::File),
            Some(("binary", rest)) => {
                let (program, query) = rest.split_once('?').unwrap_or((rest, ""));
                let program = absolute(unescape(program).ok_or_else(refused)?.into())?;
                let arguments = arguments(query).ok_or_else(refused)?;
                Ok(Self::Logger(Logger { program, arguments }))
            }
            Some(_) => Err(refused()),
        }
    }
}

/// `k=v&k=v` as a list of keys and values.
fn arguments(query: &str) -> Option<Vec<String>> {
    let mut arguments = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        for part in [key, value] {
            arguments.push(unescape(&part.replace('+', " "))?);
        }
    }
    (arguments.len() <= MAX_ARGUMENTS).then_some(arguments)
}

/// Decodes `%20` and the like.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &rest[2..];
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_address_is_understood() {
        let logger = |arguments: &[&str]| {
            let arguments = arguments.iter().map(|&text| text.to_owned()).collect();
            Endpoint::Logger(Logger { program: "/bin/log".into(), arguments })
        };
        let cases = [
            ("", Endpoint::Null),
            ("/run/fifo/1", Endpoint::Fifo("/run/fifo/1".into())),
            ("file:///var/log/a%20b", Endpoint::File("/var/log/a b".into())),
            ("binary:///bin/log", logger(&[])),
            ("binary:///bin/log?id=a+b&file=%2Ftmp%2Fx&flag", logger(&["id", "a b", "file", "/tmp/x", "flag", ""])),
        ];
        for (text, endpoint) in cases {
            assert_eq!(Endpoint::parse(text).unwrap(), endpoint, "{text}");
        }
    }

    #[test]
    fn other_addresses_are_refused() {
        for text in ["fifo", "file://log", "http://x/y", "binary://", "binary:///x?%zz", "file:///a%00b", "file:///%4"]
        {
            assert!(matches!(Endpoint::parse(text), Err(StdioError::Address(_))), "{text}");
        }
    }
}
