//! What to boot, from the pod's OCI specification and the node's configuration. Pure.

use super::oci::Spec;
use bulkhead_config::Config;

/// A sandbox to be booted: everything that was asked for, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxSpec {
    /// containerd's namespace.
    pub namespace: String,
    pub id: String,
    pub hostname: String,
    pub memory_mib: u32,
    pub vcpus: u8,
    /// `linux.cgroupsPath`; may be empty.
    pub cgroups_path: String,
}

/// Why a specification is refused. Each is one sentence for whoever wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("{what} {text:?} is not a valid identifier")]
    Identifier { what: &'static str, text: String },
}

impl SandboxSpec {
    pub fn from_oci(namespace: &str, id: &str, spec: &Spec, config: &Config) -> Result<Self, SpecError> {
        let _ = (namespace, id, spec, config);
        todo!()
    }
}
