//! What a process prints, on its way to containerd: a command that is run in a pod as an exec probe does, so that containerd reads all
//! of it and hands it on.

use crate::pods;
use crate::sample::tell;
use anyhow::{Result, ensure};
use e2e::cri::Container;
use e2e::{BUSYBOX, FOREVER};
use std::time::{Duration, Instant};

/// containerd keeps no more than 16 MiB of such a command's output.
const BYTES: u32 = 12 << 20;

/// Printed at once: as much as a pipe holds.
const BLOCK: u32 = 64 << 10;

/// Nanoseconds for a byte, without what the command takes to start and end.
pub fn measure(handler: &str) -> Result<()> {
    let pod = pods::run(handler)?;
    let container = pod.container("main", BUSYBOX).command(&FOREVER).try_create()?;
    container.start()?;
    pods::check_origin(handler)?;
    std::thread::sleep(Duration::from_secs(2));
    print(&container, BLOCK)?;
    let (little, much) = (print(&container, BLOCK)?, print(&container, BYTES)?);
    tell("output", much.saturating_sub(little).as_secs_f64() * 1e9 / f64::from(BYTES - BLOCK));
    Ok(())
}

fn print(container: &Container<'_>, bytes: u32) -> Result<Duration> {
    let started = Instant::now();
    let done = container
        .try_exec(&["/bin/dd", "if=/dev/zero", &format!("bs={BLOCK}"), &format!("count={}", bytes / BLOCK)], None)?;
    let time = started.elapsed();
    ensure!(done.code == 0, "dd ended with {}", done.code);
    ensure!(done.stdout.len() == bytes as usize, "{} of {bytes} bytes arrived", done.stdout.len());
    Ok(time)
}
