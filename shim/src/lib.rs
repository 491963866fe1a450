//! `containerd-shim-bulkhead-v2`: runs one pod in one microVM for containerd.

pub mod sandbox;
