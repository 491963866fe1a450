//! The end-to-end suite: one binary that runs inside a node VM. `cargo xtask test` builds, carries and runs it.

use e2e::container::ctr;
use e2e::cri::Sandboxer;

mod accounting;
mod bad_input;
mod block_volumes;
mod churn;
mod clock;
mod containerd_restart;
mod cri_streams;
mod direct_volumes;
mod disks;
mod empty_dir;
mod escape;
mod faults;
mod host_sockets;
mod hot_plug;
mod isolation;
mod layers;
mod lifecycle;
mod memory;
mod network;
mod network_bad_input;
mod network_forward;
mod nfs;
mod operator;
mod pod_config;
mod pod_services;
mod pod_volumes;
mod pod_workloads;
mod pods;
mod policy;
mod posix;
mod power_cut;
mod security;
mod shared_volumes;
mod streams;
mod templates;
mod tracing;
mod workloads;

/// Repeats a module's tests for each snapshotter. Root filesystems of overlayfs and native are shared through virtio-fs, those
/// of blockfile and devmapper are virtio-blk disks, and those of erofs are layers on one; `make test` has the first of each
/// kind, and `layers.rs` has erofs.
macro_rules! for_each_snapshotter {
    (long: $($name:ident),+ $(,)?) => {
        mod overlayfs {
            $(#[test] #[ignore = "`make test-long`"] fn $name() { super::$name("overlayfs"); })+
        }
        mod blockfile {
            $(#[test] #[ignore = "`make test-long`"] fn $name() { super::$name("blockfile"); })+
        }
        crate::for_each_other_snapshotter!($($name),+);
    };
    ($($name:ident),+ $(,)?) => {
        mod overlayfs {
            $(#[test] fn $name() { super::$name("overlayfs"); })+
        }
        mod blockfile {
            $(#[test] fn $name() { super::$name("blockfile"); })+
        }
        crate::for_each_other_snapshotter!($($name),+);
    };
}
pub(crate) use for_each_snapshotter;

macro_rules! for_each_other_snapshotter {
    ($($name:ident),+) => {
        mod native {
            $(#[test] #[ignore = "`make test-long`"] fn $name() { super::$name("native"); })+
        }
        mod devmapper {
            $(#[test] #[ignore = "`make test-long`"] fn $name() { super::$name("devmapper"); })+
        }
        mod erofs {
            $(#[test] #[ignore = "`make test-long`"] fn $name() { crate::with_erofs(|| super::$name("erofs")); })+
        }
    };
}
pub(crate) use for_each_other_snapshotter;

/// Runs a test where containerd has the erofs snapshotter.
fn with_erofs(test: impl FnOnce()) {
    let plugins = ctr(&["plugins", "ls"]).success().stdout();
    let ok = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        words.first().is_some_and(|kind| kind.ends_with("snapshotter.v1"))
            && words.get(1) == Some(&"erofs")
            && words.last() == Some(&"ok")
    };
    if plugins.lines().any(ok) { test() } else { println!("test skipped: this containerd has no erofs snapshotter") }
}

/// Repeats a module's tests for each of containerd's ways from a pod to a shim. A pod costs up to a minute under
/// emulation: `make test` has the quick ones, one way on each edition; `make test-long` has all, both ways where there are two.
macro_rules! for_each_sandboxer {
    ($(quick: $($quick:ident),+;)? $(long: $($long:ident),+)?) => {
        mod podsandbox {
            $($(#[test] fn $quick() { crate::by_podsandbox(super::$quick); })+)?
            $($(#[test] #[ignore = "`make test-long`"] fn $long() { crate::by_podsandbox(super::$long); })+)?
        }
        mod sandbox_api {
            $($(#[test] fn $quick() { crate::by_sandbox_api(super::$quick); })+)?
            $($(#[test] #[ignore = "`make test-long`"] fn $long() { crate::by_sandbox_api(super::$long); })+)?
        }
    };
}
pub(crate) use for_each_sandboxer;

/// Set for `make test-long`.
const LONG: &str = "E2E_LONG";

fn by_podsandbox(test: fn(Sandboxer)) {
    if !Sandboxer::Shim.available() || std::env::var_os(LONG).is_some() {
        test(Sandboxer::PodSandbox);
    } else {
        println!("test skipped: by the sandbox API here, unless in `make test-long`");
    }
}

/// A containerd without the sandbox API counts the test as skipped.
fn by_sandbox_api(test: fn(Sandboxer)) {
    if Sandboxer::Shim.available() {
        test(Sandboxer::Shim);
    } else {
        println!("test skipped: this containerd has no sandbox API");
    }
}
