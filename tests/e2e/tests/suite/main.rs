//! The end-to-end suite: one binary that runs inside a node VM. `cargo xtask test` builds, carries and runs it.

mod bad_input;
mod churn;
mod faults;
mod hot_plug;
mod isolation;
mod lifecycle;
mod operator;
mod streams;
mod workloads;

/// Repeats a module's tests for each snapshotter: overlayfs is shared through virtio-fs, blockfile is a virtio-blk disk.
macro_rules! for_each_snapshotter {
    ($($name:ident),+ $(,)?) => {
        mod overlayfs {
            $(#[test] fn $name() { super::$name("overlayfs"); })+
        }
        mod blockfile {
            $(#[test] fn $name() { super::$name("blockfile"); })+
        }
    };
}
pub(crate) use for_each_snapshotter;
