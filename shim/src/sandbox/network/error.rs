//! Why a pod cannot have its network.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("network namespace {path} cannot be opened: {error}")]
    NoNamespace { path: PathBuf, error: io::Error },
    #[error("{path} is not a network namespace")]
    NotANamespace { path: PathBuf },
    #[error("a microVM cannot share the node's network ({path} is the node's own network namespace)")]
    NodesOwn { path: PathBuf },
    /// Names the interface, route or rule, and what is wrong with it.
    #[error("the pod's network cannot be given to a microVM: {0}")]
    Unsupported(String),
    #[error("interface {0} has an ingress queueing discipline already: another microVM or program uses it")]
    InUse(String),
    #[error("cannot {operation} {object}: {error}")]
    System { operation: &'static str, object: String, error: io::Error },
}

impl NetworkError {
    /// For `map_err`: the operation and the object that the kernel refused.
    pub fn system<E: Into<io::Error>>(operation: &'static str, object: impl ToString) -> impl FnOnce(E) -> Self {
        move |error| Self::System { operation, object: object.to_string(), error: error.into() }
    }
}
