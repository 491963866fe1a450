//! `bench SECONDS MEASUREMENT CONTENDER`: measures once, if the node is busy for no longer than that.

use anyhow::{Context, Result, bail};
use bench::bulkhead;
use bench::qemu;
use bench::sample::tell_time;
use bench::vmm::Files;
use bench::{counts, idle, limit, link, memory, network, output, pods};
use std::path::Path;
use std::time::Duration;

/// Where `tests/bench/prepare` puts things.
const BENCH: &str = "/run/bench";
/// Comes back to the machine that the node runs on.
const ARTIFACTS: &str = "/artifacts";
const QEMU: qemu::Files<'_> =
    qemu::Files { root: "/shares/qemu", kernel: "/mnt/vmlinux-bench", root_image: "/mnt/init.erofs" };

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (seconds, words) = words.split_first().context("name a limit and a measurement")?;
    limit::busy(Duration::from_secs(seconds.parse().context("the limit is no number")?))?;
    let file = |name: &str| Path::new(BENCH).join(name);
    let (program, kernel, image) = (file("bulkhead-vmm"), file("vmlinux"), file("guest.erofs"));
    let installed = Files { program: &program, kernel: &kernel, root_image: &image };
    let (kernel, image) = (file("vmlinux-bench"), file("init.erofs"));
    let compared = Files { program: &program, kernel: &kernel, root_image: &image };
    match *words {
        ["vmm-init", "bulkhead-cold"] => tell_time("vmm-init", bulkhead::init(&compared)?),
        ["vmm-init", "qemu"] => tell_time("vmm-init", qemu::init(&QEMU)?),
        ["exits", "bulkhead-cold"] => counts::exits(|| bulkhead::init(&compared))?,
        ["exits", "qemu"] => counts::exits(|| qemu::init(&QEMU))?,
        ["link", "bulkhead-cold"] => link::bulkhead(&compared, link::streams)?,
        ["link", "qemu"] => link::microvm(&QEMU, "", link::streams)?,
        ["link", "qemu-vhost"] => link::microvm(&QEMU, ",vhost=on", link::streams)?,
        ["link-datagrams", "bulkhead-cold"] => link::bulkhead(&compared, link::datagrams)?,
        ["link-datagrams", "qemu"] => link::microvm(&QEMU, "", link::datagrams)?,
        ["link-datagrams", "qemu-vhost"] => link::microvm(&QEMU, ",vhost=on", link::datagrams)?,
        ["vmm-agent", "bulkhead-cold"] => bulkhead::agent(&installed)?,
        ["vmm-agent", "bulkhead-template"] => {
            let template = bulkhead::template(&installed, &file("template"))?;
            bulkhead::restored_agent(&installed, &template)?;
        }
        ["pod", contender] => pods::measure(handler(contender)?)?,
        ["phases", contender] => {
            counts::phases(handler(contender)?, &format!("{ARTIFACTS}/pod-{contender}.trace.json"))?
        }
        ["trace", "bulkhead-cold"] => {
            let timeline = bulkhead::trace(&installed)?;
            timeline.write(&format!("{ARTIFACTS}/vmm-bulkhead-cold.trace.json"))?;
        }
        ["trace", "bulkhead-template"] => {
            let template = bulkhead::template(&installed, &file("template"))?;
            let timeline = bulkhead::trace_restored(&installed, &template)?;
            timeline.write(&format!("{ARTIFACTS}/vmm-bulkhead-template.trace.json"))?;
        }
        ["syscalls", contender] => counts::syscalls(handler(contender)?)?,
        ["output", contender] => output::measure(handler(contender)?)?,
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
        // What an installed node has.
        "bulkhead-template" => Ok("bulkhead"),
        _ => bail!("there is no contender {contender}"),
    }
}
