//! The guest agent: PID 1 of the microVM and manager of the pod's containers.
//!
//! Everything in here belongs to the tenant. The agent protects nothing from the tenant: that is the VMM's and
//! the shim's work. What it must be is right, small and quick, and never in the way of a kill.
//!
//! `init` is PID 1, `guest` prepares the kernel, `server` listens, `rpc` has a file per call, `container` does the
//! work with `crun`, `rootfs`, `cgroup`, `volumes` and `stdio`, and `reaper` collects every child.

pub mod agent;
pub mod cgroup;
pub mod container;
pub mod crun;
pub mod error;
pub mod forward;
pub mod guest;
pub mod id;
pub mod init;
pub mod kernel_log;
pub mod moments;
pub mod pci;
pub mod pids;
pub mod pressure;
pub mod reaper;
pub mod rootfs;
pub mod rpc;
pub mod server;
pub mod sockets;
pub mod spec;
pub mod stdio;
pub mod streams;
pub mod volumes;
