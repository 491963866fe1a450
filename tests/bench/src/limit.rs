//! Ends a measurement whose guest spins for ever, which an emulated processor now and then has one do. Under the instruction clock
//! idle time costs next to nothing, but each busy second of the node costs the machine most of a minute.

use crate::idle::{STATISTICS, idle};
use anyhow::Result;
use std::fs::File;
use std::time::{Duration, Instant};

const GLANCE: Duration = Duration::from_millis(500);

/// What this program ends with then.
const OVER: i32 = 3;

/// Ends this program when the node's processors have been busy for so long.
pub fn busy(limit: Duration) -> Result<()> {
    // Opened once: QEMU is measured in another root directory.
    let statistics = File::open(STATISTICS)?;
    let (start, before) = (Instant::now(), idle(&statistics)?);
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(GLANCE);
            let Ok(now) = idle(&statistics) else { return };
            if start.elapsed().saturating_sub(now.saturating_sub(before)) > limit {
                eprintln!("the node has been busy for {} s", limit.as_secs());
                // Whoever runs a guest ends with this program, or is removed with its pod.
                std::process::exit(OVER);
            }
        }
    });
    Ok(())
}
