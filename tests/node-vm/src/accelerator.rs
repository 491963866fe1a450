//! Hardware virtualization when it can be nested, emulation when not.

use anyhow::{Result, bail};
use std::path::Path;

/// What executes the node's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The machine's own virtualization, which has to offer itself to the node in turn.
    Kvm,
    /// QEMU's translator. Ten to fifty times slower, and available everywhere.
    Tcg,
}

impl Accelerator {
    /// The fastest one that gives the node a working `/dev/kvm`.
    ///
    /// `BULKHEAD_NODE_ACCELERATOR=kvm|tcg` overrides the choice, for machines that claim more than they can do.
    pub fn detect() -> Result<Self> {
        match std::env::var("BULKHEAD_NODE_ACCELERATOR").as_deref() {
            Ok("kvm") => return Ok(Accelerator::Kvm),
            Ok("tcg") => return Ok(Accelerator::Tcg),
            Ok(other) => bail!("BULKHEAD_NODE_ACCELERATOR is {other:?}; it can be kvm or tcg"),
            Err(_) => {}
        }
        // Opening /dev/kvm is not proof: it also opens on machines that run no 64-bit guest.
        let nested = ["kvm_amd", "kvm_intel"].iter().any(|module| {
            std::fs::read_to_string(Path::new("/sys/module").join(module).join("parameters/nested"))
                .is_ok_and(|value| matches!(value.trim(), "1" | "Y"))
        });
        let usable = std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
        Ok(if nested && usable { Accelerator::Kvm } else { Accelerator::Tcg })
    }
}
