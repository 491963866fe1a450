//! `binary://` loggers: a program of the node's administrator that is handed a container's output.
//!
//! The program gets stdout as descriptor 3, stderr as 4, and closes descriptor 5 when it is ready. It ends by
//! itself when both outputs have ended.

#![expect(unsafe_code, reason = "descriptors 3, 4 and 5 can only be placed between fork and exec")]

use super::endpoint::{Logger, StdioError};
use crate::identifier::Identifier;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::Stdio;
use std::time::Duration;
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::process::{Child, Command};

/// Descriptors of the program: stdout, stderr, ready.
const PLACES: [RawFd; 3] = [3, 4, 5];

/// For the program to say that it is ready, and to end after the outputs have.
const READY_LIMIT: Duration = Duration::from_secs(10);

/// Starts the program and returns the writing ends for stdout and stderr.
pub fn run(logger: &Logger, namespace: &Identifier, container: &Identifier) -> Result<[Option<Sender>; 2], StdioError> {
    let failed = |source: io::Error| StdioError::Logger { program: logger.program.clone(), source };
    let (stdout, stdout_writer) = pipe().map_err(failed)?;
    let (stderr, stderr_writer) = pipe().map_err(failed)?;
    let (ready_reader, ready) = pipe().map_err(failed)?;

    let mut command = Command::new(&logger.program);
    command
        .args(&logger.arguments)
        .env_clear()
        .env("CONTAINER_ID", container.as_str())
        .env("CONTAINER_NAMESPACE", namespace.as_str())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let given = [stdout.as_raw_fd(), stderr.as_raw_fd(), ready.as_raw_fd()];
    let place = move || {
        for (from, to) in given.into_iter().zip(PLACES) {
            // SAFETY: dup2 is async-signal-safe; `given` stays open in the parent until after spawn, and lies above
            // PLACES (`pipe`), so that no placed descriptor is overwritten.
            if unsafe { libc::dup2(from, to) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: `place` only makes async-signal-safe calls and does not allocate.
    unsafe { command.pre_exec(place) };
    let child = command.spawn().map_err(failed)?;
    drop((stdout, stderr, ready));

    let ready = Receiver::from_owned_fd(nonblocking(ready_reader).map_err(failed)?).map_err(failed)?;
    tokio::spawn(look_after(child, ready, logger.program.display().to_string()));
    let sender = |fd| nonblocking(fd).and_then(Sender::from_owned_fd).map(Some).map_err(failed);
    Ok([sender(stdout_writer)?, sender(stderr_writer)?])
}

/// Reaps the program, and reports one that never becomes ready.
async fn look_after(mut child: Child, ready: Receiver, program: String) {
    // Readable at its end: the program closed the descriptor, or wrote to it, or died.
    if tokio::time::timeout(READY_LIMIT, ready.readable()).await.is_err() {
        tracing::warn!(program, "logger is not ready after {READY_LIMIT:?}");
    }
    drop(ready);
    match child.wait().await {
        Ok(status) if status.success() => {}
        Ok(status) => tracing::warn!(program, %status, "logger failed"),
        Err(error) => tracing::warn!(program, %error, "logger can't be waited for"),
    }
}

/// A pipe whose descriptors lie above those that the program gets.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((lift(&reader)?, lift(&writer)?))
}

fn lift(fd: &OwnedFd) -> io::Result<OwnedFd> {
    let lifted = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(PLACES[2] + 1))?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(lifted) })
}

fn nonblocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(fd)
}
