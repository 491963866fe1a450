//! The VMM's parts. The binary composes them; tests and fuzzers use them one by one.

pub mod jail;
pub mod virtio;
pub mod worker;
