//! The end-to-end suite: one binary that runs inside a node VM. `cargo xtask test` builds, carries and runs it.

mod accounting;
mod bad_input;
mod churn;
mod containerd_restart;
mod cri_streams;
mod faults;
mod hot_plug;
mod isolation;
mod lifecycle;
mod network;
mod operator;
mod pod_services;
mod pod_workloads;
mod security;
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

/// Repeats a module's tests for each way from a pod to a shim. A containerd that has only one counts the other as skipped.
macro_rules! for_each_sandboxer {
    ($($name:ident),+ $(,)?) => {
        mod podsandbox {
            $(#[test] fn $name() { super::$name(e2e::cri::Sandboxer::PodSandbox); })+
        }
        mod sandbox_api {
            $(#[test] #[ignore = "the shim does not serve the sandbox API yet"] fn $name() {
                if e2e::cri::Sandboxer::Shim.available() {
                    super::$name(e2e::cri::Sandboxer::Shim);
                } else {
                    println!("test skipped: this containerd has no sandbox API");
                }
            })+
        }
    };
}
pub(crate) use for_each_sandboxer;
