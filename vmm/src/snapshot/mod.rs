//! What a machine is besides its memory's content, as it is saved in a template and restored from one.
//!
//! The state is read by a process that is jailed already, from a file that root has written. Still nothing in it is
//! believed: queues are checked against memory as those of a driver are, and whatever does not fit is an error, upon which
//! the shim boots the machine the slow way.

pub mod clock;
pub mod codec;
pub mod memory;
pub mod pause;
pub mod state;
pub mod vcpu;

#[cfg(test)]
mod tests;
