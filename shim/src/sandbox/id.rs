//! The sandbox's name on the node.

use crate::identifier::Identifier;
use std::fmt;

/// Names one sandbox among those of every containerd client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SandboxId {
    pub namespace: Identifier,
    pub id: Identifier,
}

impl SandboxId {
    pub fn new(namespace: &Identifier, id: &Identifier) -> Self {
        Self { namespace: namespace.clone(), id: id.clone() }
    }

    #[cfg(test)]
    pub fn test(namespace: &str, id: &str) -> Self {
        Self { namespace: namespace.parse().unwrap(), id: id.parse().unwrap() }
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.id)
    }
}
