//! `containerd-shim-bulkhead-v2`: runs one pod in one microVM for containerd.
//!
//! ```text
//! containerd ─ start ──► [start]  finds or makes the pod's socket, leaves a daemon behind
//!            ─ ttrpc ──► [serve]  the daemon: [task] and [sandbox_api] verbs on [sandbox], events, stdio
//!            ─ delete ─► [delete] removes what a dead daemon left, from recorded state alone
//! ```

pub mod args;
pub mod bundle;
pub mod clock;
pub mod delete;
pub mod error;
pub mod events;
pub mod identifier;
pub mod info;
pub mod log;
pub mod options;
pub mod sandbox;
pub mod sandbox_api;
pub mod serve;
pub mod start;
pub mod stdio;
pub mod task;
pub mod template;
pub mod trace;
