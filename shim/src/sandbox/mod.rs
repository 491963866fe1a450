//! The pod sandbox as the shim sees it: one microVM, the files it may reach, and everything on the node that
//! exists only because of it.
//!
//! ```text
//! SandboxSpec::from_oci   what to boot; pure, refuses what it can't honour
//! Sandbox::boot           state record, user id, cgroup, VMM, guest, agent
//! Sandbox::attach         a container's root filesystem and host mounts, and its spec as the guest sees it
//! Sandbox::agent          the agent's calls, each with a deadline
//! Sandbox::destroy        all of it goes, within a bound; `cleanup` does the same for a shim that died
//! ```
//!
//! Nothing that the guest or its VMM says selects an object of the node.

use agent_protocol::stream::Hello;
use bulkhead_config::Config;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::UnixStream;
use tokio::sync::watch;

mod agent;
mod error;
pub mod oci;
mod spec;

pub use agent::{Agent, AgentError};
pub use error::SandboxError;
pub use spec::{SandboxSpec, SpecError};

/// A mount that containerd asks for, as in the `rootfs` of a create request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `overlay`, `bind`, `ext4`…
    pub kind: String,
    pub source: PathBuf,
    pub options: Vec<String>,
}

/// A container to be attached.
#[derive(Clone, Debug)]
pub struct Container<'a> {
    pub id: &'a str,
    /// `config.json` as containerd wrote it.
    pub spec: &'a oci::Spec,
    /// Empty: the root filesystem is `root.path` of the spec.
    pub rootfs: &'a [Mount],
    pub bundle: &'a Path,
}

/// What the agent's `CreateContainer` needs to know about an attached container.
#[derive(Clone, Debug, PartialEq)]
pub struct Attached {
    pub rootfs: agent_protocol::agent::create_container_request::Rootfs,
    /// The OCI specification (JSON) as the guest is to see it.
    pub spec: Vec<u8>,
}

/// One running microVM. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Sandbox {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {}

impl Sandbox {
    /// Boots a microVM to "agent ready". When it fails, nothing of it is left on the node. Takes up to 100 s.
    pub async fn boot(spec: SandboxSpec, config: &Config) -> Result<Self, SandboxError> {
        let _ = (spec, config);
        todo!()
    }

    /// The agent in the guest.
    pub fn agent(&self) -> &Agent {
        todo!()
    }

    /// The VMM's process id on the node: the pid that containerd gets for every process of the pod.
    pub fn vmm_pid(&self) -> u32 {
        todo!()
    }

    /// Holds the reason once the microVM is gone, whatever ended it.
    pub fn stopped(&self) -> watch::Receiver<Option<String>> {
        todo!()
    }

    /// Opens one stdio channel; returns after the agent accepted it. What follows is `agent_protocol::stream` frames.
    pub async fn open_stream(&self, hello: &Hello) -> Result<UnixStream, SandboxError> {
        let _ = hello;
        todo!()
    }

    /// Makes a container's root filesystem and host mounts reachable for the guest. When it fails, nothing is attached.
    pub async fn attach(&self, container: &Container<'_>) -> Result<Attached, SandboxError> {
        let _ = container;
        todo!()
    }

    /// Takes back what [`Self::attach`] gave. Call it after the agent's `Delete`. Idempotent; works without the guest.
    pub async fn detach(&self, container_id: &str) -> Result<(), SandboxError> {
        let _ = container_id;
        todo!()
    }

    /// Ends the VMM at once, without asking the guest. [`Self::stopped`] tells when it is gone.
    pub fn kill(&self, reason: &str) {
        let _ = reason;
        todo!()
    }

    /// Shuts the guest down (2 s at most, so that its file systems are synced), then removes all that the sandbox
    /// has on the node. Idempotent.
    pub async fn destroy(&self) {
        todo!()
    }
}

/// Removes what a sandbox left on the node, from its recorded state alone: for `delete`, after the shim died.
/// Idempotent; a sandbox that never existed is fine. Takes less than 5 s and never asks the guest.
pub fn cleanup(namespace: &str, id: &str) -> Result<(), SandboxError> {
    let _ = (namespace, id);
    todo!()
}
