//! Virtio devices and the transport that they share.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod console;
pub mod device;
pub mod discard;
pub mod failure;
pub mod fs;
pub mod mem;
pub mod net;
pub mod pmem;
pub mod ring;
pub mod rng;
pub mod service;
#[cfg(test)]
pub mod testing;
mod throttle;
pub mod transport;
mod vectored;
pub mod vsock;
