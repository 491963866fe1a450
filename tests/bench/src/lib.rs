//! What `cargo xtask bench` runs inside its node: one measurement a call, told on standard output.
//!
//! How often something is measured, what a failure means and what is made of the figures is decided outside
//! (`xtask/src/bench/`): a call that hangs or a node that dies costs one measurement.

pub mod bulkhead;
pub mod console;
pub mod counts;
pub mod idle;
pub mod limit;
pub mod link;
pub mod memory;
pub mod network;
pub mod output;
pub mod phases;
pub mod pods;
pub mod process;
pub mod qemu;
pub mod rest;
pub mod sample;
pub mod timeline;
pub mod trace;
pub mod vmm;

/// What the measured guest's init prints.
pub const INIT_LINE: &str = "bench: the guest's init runs";

/// Memory of a guest that is measured without a pod.
pub const GUEST_MIB: u32 = 128;
