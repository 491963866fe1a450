//! `bench MEASUREMENT CONTENDER`: measures once.

use anyhow::{Result, bail};
use bench::bulkhead::Vmm;
use bench::qemu::{self, Files};
use bench::sample::tell_time;
use std::path::Path;

/// Where `tests/bench/prepare` puts things.
const BENCH: &str = "/run/bench";
const QEMU: Files<'_> = Files { root: "/shares/qemu", kernel: "/mnt/vmlinux-bench", root_image: "/mnt/init.erofs" };

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let file = |name: &str| Path::new(BENCH).join(name);
    match words[..] {
        ["vmm-init", "bulkhead"] => {
            let vmm = Vmm::boot(&file("bulkhead-vmm"), &file("vmlinux-bench"), &file("init.erofs"))?;
            tell_time("vmm-init", vmm.init()?);
        }
        ["vmm-init", "qemu"] => tell_time("vmm-init", qemu::init(&QEMU)?),
        ["vmm-agent", "bulkhead"] => {
            let vmm = Vmm::boot(&file("bulkhead-vmm"), &file("vmlinux"), &file("guest.erofs"))?;
            tell_time("vmm-agent", vmm.agent()?);
        }
        _ => bail!("there is no measurement {words:?}"),
    }
    Ok(())
}
