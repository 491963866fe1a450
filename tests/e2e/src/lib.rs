//! What the end-to-end tests share. They run inside a node VM (tests/README.md), as root, against the node's own
//! containerd, and drive it through `ctr`, as an operator would, or through CRI, as kubelet does.

pub mod cni;
pub mod container;
pub mod cri;
pub mod leaks;
pub mod log;
pub mod netns;
pub mod node_config;
pub mod probe;
pub mod task_api;
pub mod terminal;
pub mod vmm;

pub use container::{Container, Finished, Running};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The runtime under test.
pub const RUNTIME: &str = "io.containerd.bulkhead.v2";

/// A shell and its tools; small.
pub const BUSYBOX: &str = "bulkhead.test/busybox:latest";

/// An image whose configuration names no command.
pub const NO_COMMAND: &str = "bulkhead.test/nocmd:latest";

/// Debian with python3, redis, nginx and load tools.
pub const DEBIAN: &str = "bulkhead.test/debian:latest";

/// The command of a container that is only there.
pub const FOREVER: [&str; 2] = ["/bin/sleep", "3600"];

/// Longest wait for anything: a microVM under emulation takes seconds to boot, ten at once take ten times that.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Waits until `condition` holds; panics with `what` when it never does.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "gave up waiting until {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Runs a program of the node; its failure is the test's.
#[track_caller]
pub fn run(line: &[&str]) -> String {
    try_run(line).success().stdout()
}

pub fn try_run(line: &[&str]) -> Finished {
    let output = Command::new(line[0]).args(&line[1..]).stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("{line:?}: {error}")).into()
}

/// Ends a process of the node at once.
#[track_caller]
pub fn kill_process(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"));
    kill(pid, Signal::SIGKILL).expect("the process is there");
}

/// SHA-256 in the spelling of `sha256sum`.
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `length` bytes that no compression or line handling leaves intact by luck.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(length)
    .collect()
}
