//! The command line that containerd uses: flags in Go's style, then one action.

use crate::identifier::{Identifier, InvalidIdentifier};
use std::path::PathBuf;

/// The action's name: the shim runs it too.
pub const ENSURE_TEMPLATE: &str = "ensure-template";

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Print the version and exit.
    Version,
    /// Describe the runtime on stdout; options come on stdin.
    Info,
    /// Make sure that a shim serves this container, and print its address.
    Start,
    /// Remove what a dead shim left.
    Delete,
    /// Make the node's template. Not containerd's: the operator's command runs it.
    Template,
    /// The same, unless it is there and fits.
    EnsureTemplate,
    /// Say on stdout what of pods starts from the template. Reads all of it.
    CheckTemplate,
    /// Serve. Not containerd's: `start` runs it, with the listening socket as standard input.
    Serve,
}

/// A parsed command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    pub action: Action,
    pub namespace: Option<Identifier>,
    pub id: Option<Identifier>,
    /// containerd's own gRPC socket; only part of a socket's name for us.
    pub address: String,
    /// Empty means the working directory.
    pub bundle: PathBuf,
    pub debug: bool,
}

/// Why a command line makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ArgumentError {
    #[error("unknown flag {0:?}")]
    UnknownFlag(String),
    #[error("flag {0:?} needs a value")]
    MissingValue(String),
    #[error("unknown action {0:?}: expected start or delete")]
    UnknownAction(String),
    #[error("no action given: this program is run by containerd; see -v and -info")]
    NoAction,
    #[error("flag -{flag}: {source}")]
    Identifier { flag: &'static str, source: InvalidIdentifier },
    #[error("flag -{0} is missing")]
    Missing(&'static str),
}

impl Arguments {
    /// Parses what follows the program's name.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, ArgumentError> {
        let mut parsed = Self {
            action: Action::Version,
            namespace: None,
            id: None,
            address: String::new(),
            bundle: PathBuf::new(),
            debug: false,
        };
        let mut action = None;
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let Some(flag) = argument.strip_prefix('-') else {
                action = Some(match argument.as_str() {
                    "start" => Action::Start,
                    "delete" => Action::Delete,
                    "serve" => Action::Serve,
                    "template" => Action::Template,
                    ENSURE_TEMPLATE => Action::EnsureTemplate,
                    "check-template" => Action::CheckTemplate,
                    _ => return Err(ArgumentError::UnknownAction(argument)),
                });
                continue;
            };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            match name {
                "v" | "version" => action = Some(Action::Version),
                "info" => action = Some(Action::Info),
                "debug" => parsed.debug = inline.is_none_or(|value| value != "false"),
                _ => {
                    let mut value = || {
                        inline
                            .clone()
                            .or_else(|| arguments.next())
                            .ok_or_else(|| ArgumentError::MissingValue(argument.clone()))
                    };
                    match name {
                        "namespace" => parsed.namespace = Some(identifier("namespace", &value()?)?),
                        "id" => parsed.id = Some(identifier("id", &value()?)?),
                        "address" => parsed.address = value()?,
                        "bundle" => parsed.bundle = value()?.into(),
                        // Events go to containerd's ttrpc socket; nothing is published through its binary.
                        "publish-binary" | "socket" => drop(value()?),
                        _ => return Err(ArgumentError::UnknownFlag(argument)),
                    }
                }
            }
        }
        parsed.action = action.ok_or(ArgumentError::NoAction)?;
        Ok(parsed)
    }

    pub fn namespace(&self) -> Result<&Identifier, ArgumentError> {
        self.namespace.as_ref().ok_or(ArgumentError::Missing("namespace"))
    }

    pub fn id(&self) -> Result<&Identifier, ArgumentError> {
        self.id.as_ref().ok_or(ArgumentError::Missing("id"))
    }
}

fn identifier(flag: &'static str, text: &str) -> Result<Identifier, ArgumentError> {
    text.parse().map_err(|source| ArgumentError::Identifier { flag, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, ArgumentError> {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn the_start_line_of_containerd_is_understood() {
        let line = "-namespace default -address /run/containerd/containerd.sock -publish-binary /usr/bin/containerd \
                    -id web -debug start";
        let parsed = parse(line).unwrap();
        assert_eq!(parsed.action, Action::Start);
        assert_eq!(parsed.namespace().unwrap().as_str(), "default");
        assert_eq!(parsed.id().unwrap().as_str(), "web");
        assert_eq!(parsed.address, "/run/containerd/containerd.sock");
        assert!(parsed.debug);
    }

    #[test]
    fn the_delete_line_carries_the_bundle() {
        let parsed = parse("-namespace=k8s.io --id=web -bundle /b -publish-binary= delete").unwrap();
        assert_eq!((parsed.action, parsed.bundle), (Action::Delete, PathBuf::from("/b")));
    }

    #[test]
    fn version_and_info_are_flags() {
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("-info").unwrap().action, Action::Info);
    }

    #[test]
    fn bad_lines_are_named() {
        let cases = [
            ("", "no action given: this program is run by containerd; see -v and -info"),
            ("-frob start", "unknown flag \"-frob\""),
            ("-id", "flag \"-id\" needs a value"),
            ("restart", "unknown action \"restart\": expected start or delete"),
            ("-id ../x start", "flag -id: \"../x\" is not a valid identifier"),
        ];
        for (line, sentence) in cases {
            assert_eq!(parse(line).unwrap_err().to_string(), sentence);
        }
        assert_eq!(parse("start").unwrap().id(), Err(ArgumentError::Missing("id")));
    }
}
