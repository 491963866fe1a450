//! `cargo xtask demo`: a container in its own microVM, started by stock containerd.

use crate::installed::Payload;
use crate::run;
use anyhow::Result;
use node_vm::{DEFAULT_DEADLINE, Edition, NodeVm};
use std::process::ExitCode;

const CONTAINER: &str = "ctr run --rm --runtime io.containerd.bulkhead.v2 bulkhead.test/busybox:latest";

/// What the demo shows: a sentence, and the command whose output proves it.
fn steps() -> Vec<(&'static str, String)> {
    let question =
        "echo kernel: $(uname -r); echo hostname: $(hostname); grep -e MemTotal -e MemAvailable /proc/meminfo";
    vec![
        ("The node's own kernel, hostname and memory", question.to_owned()),
        ("The same, in a container in its own microVM", format!("{CONTAINER} demo-1 sh -c '{question}'")),
        ("The exit code of a failing command", format!("{CONTAINER} demo-2 sh -c 'echo failing with 42; exit 42'")),
    ]
}

pub fn demo() -> Result<ExitCode> {
    let edition = Edition::Trixie;
    eprintln!("demo: building what is missing; the first time takes several minutes");
    let payload = Payload::new(None)?;
    let artifacts = run::workspace().join("target/demo-artifacts");
    let mut node = payload.start(edition, &artifacts, Ok, &mut std::io::stderr())?;
    println!("\nThis is a Debian node with stock containerd:");
    show(&mut node, "ctr version | sed -n '/Server/,/Version/p'")?;
    let mut codes = Vec::new();
    for (sentence, command) in steps() {
        println!("\n{sentence}:\n$ {command}");
        codes.push(show(&mut node, &command)?);
        println!("(exit code {})", codes.last().copied().unwrap_or_default());
    }
    node.power_off()?;
    if codes == [0, 0, 42] {
        println!("\ndemo: done");
        return Ok(ExitCode::SUCCESS);
    }
    println!("\ndemo: FAILED; expected exit codes 0, 0 and 42. The node's logs are in {}", artifacts.display());
    Ok(ExitCode::FAILURE)
}

fn show(node: &mut NodeVm, command: &str) -> Result<i32> {
    node.run(command, DEFAULT_DEADLINE, &mut std::io::stdout())
}
