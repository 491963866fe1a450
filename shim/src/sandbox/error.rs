//! What can go wrong with a sandbox, in sentences that an operator can act on.

use super::agent::AgentError;
use super::network::NetworkError;
use super::spec::SpecError;
use super::template::Unusable;
use bulkhead_config::direct_volumes::RecordError;
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
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    DirectVolume(#[from] RecordError),
    #[error("{what} {path} is missing: reinstall Bulkhead on this node")]
    NotInstalled { what: &'static str, path: PathBuf },
    #[error("template is not used: {0}")]
    Template(#[from] Unusable),
    #[error("/dev/kvm is missing: this node has no hardware virtualization, or the kvm module is not loaded")]
    NoKvm,
    #[error("cgroup v2 is not mounted at {0}: Bulkhead does not support cgroup v1")]
    NoCgroups(PathBuf),
    #[error("cgroup {0} is in use by other processes")]
    CgroupInUse(PathBuf),
    #[error("no free user id for the VMM among {count} from {first} on")]
    NoFreeUid { first: u32, count: u32 },
    #[error("sandbox {0} is in use by another shim")]
    InUse(String),
    /// The microVM is gone; calls about its guest make no sense any more.
    #[error("the microVM is gone: {0}")]
    Gone(String),
    #[error("the VMM refused to {operation}: {reason}")]
    Refused { operation: String, reason: String },
    #[error("{operation} took longer than {} s", limit.as_secs_f64())]
    Deadline { operation: String, limit: Duration },
    #[error(
        "the guest image is of version {agent:?}, the shim of {}: reinstall Bulkhead on this node",
        agent_protocol::VERSION
    )]
    Version { agent: String },
    #[error("container {0:?} is already attached to the sandbox")]
    AlreadyAttached(String),
    #[error("cannot {operation} {object}: {error}")]
    Host { operation: &'static str, object: String, error: io::Error },
}

impl SandboxError {
    /// `operation` begins the sentence: "booting the guest".
    pub(super) fn deadline(operation: impl Into<String>, limit: Duration) -> Self {
        Self::Deadline { operation: operation.into(), limit }
    }

    /// Whether it might have worked on a node that is less busy.
    pub(super) fn is_deadline(&self) -> bool {
        matches!(self, Self::Deadline { .. } | Self::Agent(AgentError::Deadline { .. }))
    }

    /// For `map_err`: names the operation and the object that an I/O error is about.
    pub(super) fn host<E, T>(operation: &'static str, object: &T) -> impl FnOnce(E) -> Self + use<E, T>
    where
        E: Into<io::Error>,
        T: ToString + ?Sized,
    {
        let object = object.to_string();
        move |error| Self::Host { operation, object, error: error.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_reads_as_a_sentence() {
        let error = SandboxError::deadline("mounting the root filesystem of container web", Duration::from_secs(30));
        assert_eq!(error.to_string(), "mounting the root filesystem of container web took longer than 30 s");
    }
}
