//! virtio-blk: jobs of `cargo xtask bench disk` as rows of this table.

use super::sample::{Failure, Measured, Sample};
use crate::bench::disk;
use anyhow::Result;
use node_vm::Edition;

/// As `--only` chooses it.
pub const NAME: &str = "block";

/// One request at a time and 16, of 4 KiB: what the targets are about.
const JOBS: &str = "random-";

pub fn measure(edition: Edition, rounds: u32, measured: &mut Measured) -> Result<()> {
    let done = disk::compare(edition, rounds, JOBS)?;
    measured.samples.extend(done.samples.into_iter().map(|sample| Sample {
        row: format!("{NAME}-{}", sample.job),
        contender: contender(&sample.contender).to_owned(),
        value: sample.nanoseconds_per_request,
    }));
    measured.failures.extend(
        done.failures.into_iter().map(|failure| Failure {
            step: format!("{NAME} {}", contender(&failure.contender)),
            reason: failure.reason,
        }),
    );
    Ok(())
}

/// A disk is the same whether its guest booted or not.
fn contender(of_disks: &str) -> &str {
    if of_disks == "bulkhead" { "bulkhead-cold" } else { of_disks }
}
