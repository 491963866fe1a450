//! A pod's network: iperf3 between a pod of the contender and a server in a pod of runc, over the node's bridge.

use crate::pods;
use crate::sample::tell;
use anyhow::{Context, Result, ensure};
use e2e::cri::{Container, Pod, Sandboxer};
use e2e::{BUSYBOX, DEBIAN, FOREVER};
use serde_json::Value;
use std::time::Duration;

/// iperf3 looks at its clock once a second: a stream that ended by its bytes would seem to take whole seconds.
const SECONDS: &str = "1";

const PINGS: &str = "20";

pub fn measure(handler: &str) -> Result<()> {
    let server = Pod::new("server", Sandboxer::PodSandbox).handler("runc").try_run()?;
    let iperf = server.container("iperf", DEBIAN).command(&["/usr/bin/iperf3", "-s"]).try_create()?;
    iperf.start()?;
    let pod = Pod::new("client", Sandboxer::PodSandbox).handler(handler).try_run()?;
    let client = pod.container("iperf", DEBIAN).command(&FOREVER).try_create()?;
    client.start()?;
    let shell = pod.container("ping", BUSYBOX).command(&FOREVER).try_create()?;
    shell.start()?;
    pods::check_origin(handler)?;
    std::thread::sleep(Duration::from_secs(2));

    let address = server.ip();
    // The first one finds the way there.
    ping(&shell, &address, "2")?;
    tell("network-latency", ping(&shell, &address, PINGS)?);
    let up = iperf3(&client, &address, &["-t", SECONDS])?;
    tell("network-up", per_byte(&up)?);
    let down = iperf3(&client, &address, &["-t", SECONDS, "-R"])?;
    tell("network-down", per_byte(&down)?);
    let small = iperf3(&client, &address, &["-u", "-b", "0", "-l", "64", "-t", SECONDS])?;
    let sum = &small["end"]["sum"];
    let (packets, seconds) = (number(&sum["packets"])?, number(&sum["seconds"])?);
    let lost = number(&sum["lost_packets"])?;
    tell("network-datagrams", (packets - lost) / seconds);
    Ok(())
}

fn iperf3(client: &Container<'_>, address: &str, arguments: &[&str]) -> Result<Value> {
    let command = [&["/usr/bin/iperf3", "-J", "-c", address], arguments].concat();
    let done = client.try_exec(&command, None)?;
    ensure!(done.code == 0, "{command:?} ended with {}: {}{}", done.code, done.stdout(), done.stderr());
    serde_json::from_slice(&done.stdout).context("iperf3's answer is not JSON")
}

/// Nanoseconds: instructions of both ends and of what lies between, where the clock counts those.
fn per_byte(answer: &Value) -> Result<f64> {
    let sum = &answer["end"]["sum_received"];
    Ok(number(&sum["seconds"])? * 1e9 / number(&sum["bytes"])?)
}

/// Milliseconds there and back, on average.
fn ping(client: &Container<'_>, address: &str, count: &str) -> Result<f64> {
    let done = client.try_exec(&["/bin/ping", "-q", "-c", count, address], None)?;
    let said = done.stdout();
    ensure!(done.code == 0, "ping ended with {}: {said}{}", done.code, done.stderr());
    average(&said).with_context(|| format!("ping tells no times: {said}"))
}

/// `round-trip min/avg/max = 0.1/0.2/0.3 ms`.
fn average(said: &str) -> Option<f64> {
    let (_, times) = said.split_once("min/avg/max = ")?;
    times.split('/').nth(1)?.parse().ok()
}

fn number(value: &Value) -> Result<f64> {
    value.as_f64().context("iperf3 leaves a figure out")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_average_is_the_middle_one() {
        let said = "20 packets transmitted\nround-trip min/avg/max = 0.101/0.202/0.303 ms\n";
        assert_eq!(super::average(said), Some(0.202));
    }
}
