//! Virtio devices and the transport that they share.

pub mod device;
