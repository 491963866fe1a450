//! What a call of containerd can fail with, and the one table from errors to ttrpc codes.
//!
//! containerd acts on the codes: `NOT_FOUND` from Kill means "already over", `FAILED_PRECONDITION` from Delete
//! means "still running". The texts reach the user through `ctr` and kubelet.

use crate::bundle::BundleError;
use crate::identifier::{Identifier, InvalidIdentifier};
use crate::log::with_causes;
use crate::options::OptionsError;
use crate::sandbox::{AgentError, SandboxError, SpecError};
use crate::stdio::StdioError;
use crate::task::process::Refusal;
use bulkhead_config::ConfigError;
use ttrpc::Code;

#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    #[error("container {0} does not exist")]
    NoContainer(Identifier),
    #[error("container {container} has no process {exec}")]
    NoProcess { container: Identifier, exec: Identifier },
    #[error("container {0} already exists")]
    ContainerExists(Identifier),
    #[error("container {0} was deleted while it was created")]
    GivenUp(Identifier),
    #[error("container {container} already has a process {exec}")]
    ProcessExists { container: Identifier, exec: Identifier },
    #[error("pod sandbox {0} does not exist")]
    NoSandbox(Identifier),
    #[error("pod sandbox {0} already exists")]
    SandboxExists(Identifier),
    #[error("pod sandbox {0} has been started before")]
    SandboxStarted(Identifier),
    #[error("{process} {refusal}")]
    Refused { process: String, refusal: Refusal },
    #[error("pod {0} has no running microVM")]
    NoMicroVm(Identifier),
    #[error("container {0} stands for its pod and runs nothing")]
    RunsNothing(Identifier),
    #[error("no thread could be started to stand for the container on the node")]
    NodePid(#[source] std::io::Error),
    #[error(transparent)]
    Identifier(#[from] InvalidIdentifier),
    #[error("{0}")]
    Invalid(String),
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Stdio(#[from] StdioError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// Names the call whose task ended without an answer, which is a defect of the shim.
    #[error("the shim failed in {0}: see its log")]
    Panicked(&'static str),
}

impl From<SpecError> for TaskError {
    fn from(error: SpecError) -> Self {
        Self::Sandbox(error.into())
    }
}

impl TaskError {
    pub fn code(&self) -> Code {
        match self {
            Self::NoContainer(_) | Self::NoProcess { .. } | Self::NoSandbox(_) => Code::NOT_FOUND,
            Self::ContainerExists(_) | Self::ProcessExists { .. } | Self::SandboxExists(_) => Code::ALREADY_EXISTS,
            Self::Refused { refusal: Refusal::AlreadyStopped, .. } => Code::NOT_FOUND,
            Self::Refused { .. } | Self::NoMicroVm(_) | Self::RunsNothing(_) | Self::SandboxStarted(_) => {
                Code::FAILED_PRECONDITION
            }
            Self::Identifier(_) | Self::Invalid(_) | Self::Options(_) | Self::Config(_) => Code::INVALID_ARGUMENT,
            Self::Bundle(BundleError::Read { .. }) => Code::UNKNOWN,
            Self::Bundle(_) => Code::INVALID_ARGUMENT,
            Self::Unsupported(_) => Code::UNIMPLEMENTED,
            Self::GivenUp(_) => Code::CANCELLED,
            Self::Stdio(_) | Self::NodePid(_) | Self::Panicked(_) => Code::UNKNOWN,
            Self::Sandbox(SandboxError::Agent(error)) | Self::Agent(error) => agent_code(error),
            Self::Sandbox(error) => sandbox_code(error),
        }
    }
}

fn sandbox_code(error: &SandboxError) -> Code {
    match error {
        SandboxError::Spec(_) => Code::INVALID_ARGUMENT,
        SandboxError::NotInstalled { .. } | SandboxError::NoKvm | SandboxError::NoCgroups(_) => {
            Code::FAILED_PRECONDITION
        }
        SandboxError::Gone(_) => Code::UNAVAILABLE,
        SandboxError::Deadline { .. } => Code::DEADLINE_EXCEEDED,
        _ => Code::UNKNOWN,
    }
}

/// The guest chooses its code, so only those pass that say something about its own containers.
fn agent_code(error: &AgentError) -> Code {
    const PASSED: [Code; 6] = [
        Code::NOT_FOUND,
        Code::ALREADY_EXISTS,
        Code::FAILED_PRECONDITION,
        Code::INVALID_ARGUMENT,
        Code::UNIMPLEMENTED,
        Code::DEADLINE_EXCEEDED,
    ];
    match error {
        AgentError::Refused { code, .. } if PASSED.contains(code) => *code,
        AgentError::Refused { .. } => Code::UNKNOWN,
        AgentError::Deadline { .. } => Code::DEADLINE_EXCEEDED,
        AgentError::Broken { .. } => Code::UNAVAILABLE,
    }
}

impl From<TaskError> for ttrpc::Error {
    fn from(error: TaskError) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code(), with_causes(&error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn id(text: &str) -> Identifier {
        text.parse().unwrap()
    }

    fn refused(code: Code) -> TaskError {
        TaskError::Agent(AgentError::Refused { code, text: "no such file".into() })
    }

    #[test]
    fn every_error_has_its_code() {
        let limit = Duration::from_secs(1);
        let state = |refusal| TaskError::Refused { process: "container c".into(), refusal };
        let table = [
            (TaskError::NoContainer(id("c")), Code::NOT_FOUND),
            (TaskError::NoProcess { container: id("c"), exec: id("e") }, Code::NOT_FOUND),
            (TaskError::ContainerExists(id("c")), Code::ALREADY_EXISTS),
            (TaskError::GivenUp(id("c")), Code::CANCELLED),
            (TaskError::ProcessExists { container: id("c"), exec: id("e") }, Code::ALREADY_EXISTS),
            (TaskError::NoSandbox(id("p")), Code::NOT_FOUND),
            (TaskError::SandboxExists(id("p")), Code::ALREADY_EXISTS),
            (TaskError::SandboxStarted(id("p")), Code::FAILED_PRECONDITION),
            (state(Refusal::AlreadyStopped), Code::NOT_FOUND),
            (state(Refusal::StillRunning), Code::FAILED_PRECONDITION),
            (state(Refusal::NotRunning), Code::FAILED_PRECONDITION),
            (TaskError::NoMicroVm(id("p")), Code::FAILED_PRECONDITION),
            (TaskError::RunsNothing(id("p")), Code::FAILED_PRECONDITION),
            (TaskError::Invalid("x".into()), Code::INVALID_ARGUMENT),
            (TaskError::Unsupported("checkpoint"), Code::UNIMPLEMENTED),
            (TaskError::Bundle(BundleError::NoSandboxId), Code::INVALID_ARGUMENT),
            (SpecError::Unsupported("x".into()).into(), Code::INVALID_ARGUMENT),
            (TaskError::Sandbox(SandboxError::NoKvm), Code::FAILED_PRECONDITION),
            (TaskError::Sandbox(SandboxError::Gone("x".into())), Code::UNAVAILABLE),
            (TaskError::Sandbox(SandboxError::Deadline { operation: "x".into(), limit }), Code::DEADLINE_EXCEEDED),
            (TaskError::Agent(AgentError::Deadline { call: "x", limit }), Code::DEADLINE_EXCEEDED),
            (TaskError::Agent(AgentError::Broken { call: "x" }), Code::UNAVAILABLE),
            (refused(Code::NOT_FOUND), Code::NOT_FOUND),
            (refused(Code::DEADLINE_EXCEEDED), Code::DEADLINE_EXCEEDED),
            (refused(Code::OK), Code::UNKNOWN),
            (refused(Code::UNAUTHENTICATED), Code::UNKNOWN),
            (TaskError::Panicked("create"), Code::UNKNOWN),
        ];
        for (error, code) in table {
            assert_eq!(error.code(), code, "{error}");
        }
    }

    #[test]
    fn causes_are_told_once() {
        let source = std::io::Error::from_raw_os_error(libc::EACCES);
        let error = TaskError::Bundle(BundleError::Read { path: "/b/config.json".into(), source });
        let ttrpc::Error::RpcStatus(status) = error.into() else { panic!("a status") };
        assert_eq!(status.message, "cannot read /b/config.json: Permission denied (os error 13)");
    }
}
