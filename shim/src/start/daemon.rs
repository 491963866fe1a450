//! Leaves the daemon behind: this program again, with the listener as its standard input.

use crate::args::Arguments;
use crate::trace;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::parent_id;
use std::path::Path;
use std::process::{Command, Stdio};

const MAX_OOM_SCORE: i32 = 1000;

/// Starts the daemon and does not wait for it. containerd reads our standard output to its end, hence nothing of
/// ours may be inherited but the listener.
///
/// `traced`: when this program began, if the pod is traced.
pub fn leave_behind(
    arguments: &Arguments,
    bundle: &Path,
    listener: UnixListener,
    traced: Option<u64>,
) -> io::Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    for (flag, value) in [("-namespace", &arguments.namespace), ("-id", &arguments.id)] {
        if let Some(value) = value {
            command.args([flag, value.as_str()]);
        }
    }
    if arguments.debug {
        command.arg("-debug");
    }
    command.envs(traced.map(trace::environment));
    let daemon = command
        .arg("serve")
        .current_dir(bundle)
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    // The shim is to go before containerd when memory runs out, and after the containers.
    if let Some(score) = oom_score(parent_id()) {
        let _ =
            std::fs::write(format!("/proc/{}/oom_score_adj", daemon.id()), (score + 1).min(MAX_OOM_SCORE).to_string());
    }
    Ok(())
}

fn oom_score(pid: u32) -> Option<i32> {
    std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).ok()?.trim().parse().ok()
}
