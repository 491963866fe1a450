//! The VMM's parts. The binary composes them; tests and fuzzers use them one by one.

pub mod allocator;
pub mod control;
pub mod descriptors;
pub mod jail;
pub mod machine;
pub mod moments;
pub mod pci;
pub mod rate_limit;
pub mod snapshot;
pub mod virtio;
pub mod worker;
