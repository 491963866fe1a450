//! What can go wrong between the shim's call and its answer, and the one table of codes for it.

use crate::id::{ContainerId, ProcessName, VolumeId};
use std::io;
use ttrpc::Code;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what} {value:?} is not valid: {reason}")]
    Invalid { what: &'static str, value: String, reason: String },
    #[error("container `{0}` already exists")]
    ContainerExists(ContainerId),
    #[error("{0} already exists")]
    ProcessExists(ProcessName),
    #[error("there is no container `{0}`")]
    NoContainer(ContainerId),
    #[error("there is no {0}")]
    NoProcess(ProcessName),
    #[error("there is no volume {0}")]
    NoVolume(VolumeId),
    #[error("{0} has ended")]
    Ended(ProcessName),
    #[error("cannot {operation} {process}: it {state}")]
    WrongState { operation: &'static str, process: ProcessName, state: &'static str },
    #[error("guest is not configured: no container runs before it has randomness of its own")]
    NotConfigured,
    #[error("cannot have more than {limit} {what}")]
    Limit { what: &'static str, limit: usize },
    /// crun's own words, as it is the one that knows.
    #[error("{message}")]
    Runtime { message: String },
    #[error("{operation} {object} took longer than {seconds} s")]
    Deadline { operation: &'static str, object: String, seconds: u64 },
    #[error("cannot {operation} {object}: {source}")]
    System { operation: &'static str, object: String, source: io::Error },
}

/// Longest part of a refused value that is repeated in an error.
const SHOWN: usize = 80;

impl Error {
    pub fn invalid(what: &'static str, value: &str, reason: impl Into<String>) -> Self {
        Self::Invalid { what, value: value.chars().take(SHOWN).collect(), reason: reason.into() }
    }

    /// For `map_err`: the operation and the object that the system refused.
    pub fn system<E: Into<io::Error>>(operation: &'static str, object: impl ToString) -> impl FnOnce(E) -> Self {
        move |source| Self::System { operation, object: object.to_string(), source: source.into() }
    }

    pub fn code(&self) -> Code {
        match self {
            Self::Invalid { .. } => Code::INVALID_ARGUMENT,
            Self::ContainerExists(_) | Self::ProcessExists(_) => Code::ALREADY_EXISTS,
            Self::NoContainer(_) | Self::NoProcess(_) | Self::NoVolume(_) | Self::Ended(_) => Code::NOT_FOUND,
            Self::WrongState { .. } | Self::NotConfigured => Code::FAILED_PRECONDITION,
            Self::Limit { .. } => Code::RESOURCE_EXHAUSTED,
            Self::Runtime { .. } => Code::UNKNOWN,
            Self::Deadline { .. } => Code::DEADLINE_EXCEEDED,
            Self::System { .. } => Code::INTERNAL,
        }
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_the_code_that_the_shim_acts_on() {
        let container = ContainerId::parse("web").unwrap();
        let process = ProcessName::parse("web", "e1").unwrap();
        let table = [
            (Error::invalid("exec id", "/", "no"), Code::INVALID_ARGUMENT),
            (Error::ContainerExists(container.clone()), Code::ALREADY_EXISTS),
            (Error::ProcessExists(process.clone()), Code::ALREADY_EXISTS),
            (Error::NoContainer(container), Code::NOT_FOUND),
            (Error::NoProcess(process.clone()), Code::NOT_FOUND),
            (Error::NoVolume(VolumeId::parse("v1").unwrap()), Code::NOT_FOUND),
            (Error::Ended(process.clone()), Code::NOT_FOUND),
            (Error::WrongState { operation: "delete", process, state: "is running" }, Code::FAILED_PRECONDITION),
            (Error::Limit { what: "containers", limit: 1 }, Code::RESOURCE_EXHAUSTED),
            (Error::Runtime { message: String::new() }, Code::UNKNOWN),
            (Error::Deadline { operation: "crun", object: String::new(), seconds: 1 }, Code::DEADLINE_EXCEEDED),
            (Error::system("mount", "/")(io::Error::other("no")), Code::INTERNAL),
        ];
        for (error, code) in table {
            assert_eq!(error.code(), code, "{error}");
        }
    }

    #[test]
    fn a_refused_value_is_quoted_and_cut() {
        let text = Error::invalid("exec id", &"\n".repeat(500), "no").to_string();
        assert!(text.len() < 300 && !text.contains('\n'), "{text}");
    }
}
