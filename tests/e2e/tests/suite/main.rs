//! The end-to-end suite: one binary that runs inside a node VM. `cargo xtask test` builds, carries and runs it.

use e2e::cri::Sandboxer;

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
mod pods;
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

/// Repeats a module's tests for each way from a pod to a shim. `long`: the second way only in `make test-long`, for tests
/// that take minutes and differ little between the two.
macro_rules! for_each_sandboxer {
    (long: $($name:ident),+ $(,)?) => {
        mod podsandbox {
            $(#[test] fn $name() { super::$name(e2e::cri::Sandboxer::PodSandbox); })+
        }
        mod sandbox_api {
            $(#[test] #[ignore = "takes minutes: `make test-long`"] fn $name() { crate::by_sandbox_api(super::$name); })+
        }
    };
    ($($name:ident),+ $(,)?) => {
        mod podsandbox {
            $(#[test] fn $name() { super::$name(e2e::cri::Sandboxer::PodSandbox); })+
        }
        mod sandbox_api {
            $(#[test] fn $name() { crate::by_sandbox_api(super::$name); })+
        }
    };
}
pub(crate) use for_each_sandboxer;

/// A containerd without the sandbox API counts the test as skipped.
fn by_sandbox_api(test: fn(Sandboxer)) {
    if Sandboxer::Shim.available() {
        test(Sandboxer::Shim);
    } else {
        println!("test skipped: this containerd has no sandbox API");
    }
}
