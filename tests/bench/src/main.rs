//! `bench MEASUREMENT CONTENDER`: measures once.

use anyhow::{Result, bail};
use bench::bulkhead::Vmm;
use bench::qemu::{self, Files};
use bench::sample::tell_time;
use bench::{counts, idle, memory, network, pods};
use std::path::Path;

/// Where `tests/bench/prepare` puts things.
const BENCH: &str = "/run/bench";
/// Comes back to the machine that the node runs on.
const ARTIFACTS: &str = "/artifacts";
const QEMU: Files<'_> = Files { root: "/shares/qemu", kernel: "/mnt/vmlinux-bench", root_image: "/mnt/init.erofs" };

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let file = |name: &str| Path::new(BENCH).join(name);
    let boot = || Vmm::boot(&file("bulkhead-vmm"), &file("vmlinux-bench"), &file("init.erofs"));
    match words[..] {
        ["vmm-init", "bulkhead-cold"] => tell_time("vmm-init", boot()?.init()?),
        ["vmm-init", "qemu"] => tell_time("vmm-init", qemu::init(&QEMU)?),
        ["exits", "bulkhead-cold"] => counts::exits(|| boot()?.init())?,
        ["exits", "qemu"] => counts::exits(|| qemu::init(&QEMU))?,
        ["vmm-agent", "bulkhead-cold"] => {
            let vmm = Vmm::boot(&file("bulkhead-vmm"), &file("vmlinux"), &file("guest.erofs"))?;
            tell_time("vmm-agent", vmm.agent()?);
        }
        ["pod", contender] => pods::measure(handler(contender)?)?,
        ["phases", contender] => {
            counts::phases(handler(contender)?, &format!("{ARTIFACTS}/pod-{contender}.trace.json"))?
        }
        ["trace", "bulkhead-cold"] => {
            let timeline = Vmm::trace(&file("bulkhead-vmm"), &file("vmlinux"), &file("guest.erofs"))?;
            timeline.write(&format!("{ARTIFACTS}/vmm-bulkhead-cold.trace.json"))?;
        }
        ["syscalls", contender] => counts::syscalls(handler(contender)?)?,
        ["network", contender] => network::measure(handler(contender)?)?,
        ["density", contender] => idle::density(handler(contender)?)?,
        ["idle", contender] => idle::processor(handler(contender)?)?,
        ["churn", contender] => idle::churn(handler(contender)?)?,
        ["memory", contender] => memory::measure(handler(contender)?)?,
        ["clean"] => pods::clean()?,
        _ => bail!("there is no measurement {words:?}"),
    }
    Ok(())
}

/// The runtime handler of a contender's pods.
fn handler(contender: &str) -> Result<&'static str> {
    match contender {
        "runc" => Ok("runc"),
        "bulkhead-cold" => Ok("bulkhead-cold"),
        // What an installed node has; from a template once there are any.
        "bulkhead-template" => Ok("bulkhead"),
        _ => bail!("there is no contender {contender}"),
    }
}
