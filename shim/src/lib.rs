//! `containerd-shim-bulkhead-v2`: runs one pod in one microVM for containerd.
//!
//! ```text
//! containerd ─ start ──► [start]  finds or makes the pod's socket, leaves a daemon behind
//!            ─ ttrpc ──► [serve]  the daemon: [task] verbs on [sandbox], events, stdio
//!            ─ delete ─► [delete] removes what a dead daemon left, from recorded state alone
//! ```

pub mod args;
pub mod clock;
pub mod identifier;
pub mod log;
