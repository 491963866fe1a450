//! Which part of containerd makes a pod's sandbox.

use super::{call, messages};

/// The two ways from a pod to a shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandboxer {
    /// The CRI plugin's own: the sandbox is the task of a container that would be the pause process.
    PodSandbox,
    /// The shim's sandbox service, from containerd 2 on.
    Shim,
}

impl Sandboxer {
    /// The runtime handler that a RuntimeClass would name.
    pub fn handler(self) -> &'static str {
        match self {
            Self::PodSandbox => "bulkhead",
            Self::Shim => "bulkhead-sandbox",
        }
    }

    /// Whether this node's containerd has it.
    pub fn available(self) -> bool {
        match self {
            Self::PodSandbox => true,
            Self::Shim => {
                let version: messages::VersionResponse =
                    call("RuntimeService/Version", &messages::Empty::new()).expect("the CRI plugin answers");
                !version.runtime_version.trim_start_matches('v').starts_with("1.")
            }
        }
    }
}
