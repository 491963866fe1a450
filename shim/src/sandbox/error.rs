//! What can go wrong with a sandbox, in sentences that an operator can act on.

use super::agent::AgentError;
use super::spec::SpecError;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why the sandbox did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("{what} {path} is missing: reinstall Bulkhead on this node")]
    NotInstalled { what: &'static str, path: PathBuf },
    #[error("/dev/kvm is missing: this node has no hardware virtualization, or the kvm module is not loaded")]
    NoKvm,
    /// The microVM is gone; calls about its guest make no sense any more.
    #[error("the microVM is gone: {0}")]
    Gone(String),
    #[error("the VMM refused to {operation}: {reason}")]
    Refused { operation: &'static str, reason: String },
    #[error("{operation} took longer than {limit:?}")]
    Deadline { operation: &'static str, limit: Duration },
    #[error("container {0:?} is already attached to the sandbox")]
    AlreadyAttached(String),
    #[error("cannot {operation} {object}: {source}")]
    Host { operation: &'static str, object: String, source: io::Error },
}

impl SandboxError {
    /// For `map_err`: names the operation and the object that an I/O error is about.
    pub(super) fn host<E: Into<io::Error>>(operation: &'static str, object: impl ToString) -> impl FnOnce(E) -> Self {
        let object = object.to_string();
        move |source| Self::Host { operation, object, source: source.into() }
    }
}
