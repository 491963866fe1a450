//! A Kubernetes node for tests: Debian with containerd, booted by QEMU on the developer's machine.
//!
//! Bulkhead needs KVM, root, and a containerd that it may break. A node VM has all three on any Linux machine:
//! with nested virtualization QEMU uses KVM, without it QEMU emulates a processor that has AMD's SVM, and
//! `/dev/kvm` in the node is real KVM either way.
//!
//! ```no_run
//! fn list(image: node_vm::NodeImage) -> anyhow::Result<i32> {
//!     let mut node = node_vm::Builder::new(image).share("dist", "target/dist").start()?;
//!     let status = node.run("ls /shares/dist; ctr version", node_vm::DEFAULT_DEADLINE, &mut std::io::stdout())?;
//!     node.power_off()?;
//!     Ok(status)
//! }
//! ```
//!
//! The node has no network device: nothing that runs in it reaches another machine. Its disk is a snapshot that
//! is thrown away. Directories go in as read-only disks (`/shares/<name>`), and what the node writes to
//! `/artifacts` comes back when it ends, however it ends.

mod accelerator;
mod control;
mod disk;
mod edition;
mod emulator;
mod machine;
mod node;
mod nudge;

pub use accelerator::Accelerator;
pub use edition::{DiskFormat, Edition, NodeImage};
pub use machine::Clock;
pub use node::{Builder, DEFAULT_DEADLINE, NodeVm};
