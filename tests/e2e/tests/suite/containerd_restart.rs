//! containerd is restarted while pods run, as every upgrade of a node does.

use e2e::BUSYBOX;
use e2e::cri::{Container, Pod, Sandboxer};
use e2e::eventually;
use std::process::Command;

crate::for_each_sandboxer!(long: pods_do_not_notice_that_containerd_restarts);

const PODS: usize = 5;

fn pods_do_not_notice_that_containerd_restarts(sandboxer: Sandboxer) {
    let pods: Vec<Pod> = (0..PODS).map(|number| Pod::new(&format!("pod-{number}"), sandboxer).run()).collect();
    let count = |rest: &str| format!("i=0; while :; do i=$((i+1)); echo line $i; {rest}; done");
    // One of them writes more than a FIFO holds while nobody reads it.
    let scripts = std::iter::once(count("[ $((i % 200)) -gt 0 ] || sleep 0.1"));
    let scripts = scripts.chain(std::iter::repeat(count("sleep 0.5")));
    let counter = |(pod, script): (_, String)| Pod::container(pod, "counter", BUSYBOX).shell(&script).start();
    let counters: Vec<Container> = pods.iter().zip(scripts).map(counter).collect();
    // Created, but started only afterwards.
    let late = pods[0].container("late", BUSYBOX).shell("exit 9").create();
    let lines = |counter: &Container| counter.log().lines().len();
    eventually("every counter counts", || counters.iter().all(|counter| lines(counter) > 2));

    restart();

    let seen: Vec<usize> = counters.iter().map(lines).collect();
    assert!(pods.iter().all(Pod::ready));
    assert!(counters.iter().all(Container::running));
    for (counter, seen) in counters.iter().zip(seen) {
        eventually("the counter's lines go on", || lines(counter) > seen + 2);
        no_line_is_missing(counter);
        assert_eq!(counter.exec(&["/bin/echo", "here"]).stdout(), "here\n");
        assert!(counter.stats().cpu.usage_core_nano_seconds.value > 0);
    }
    late.start().expect("a container that was created before");
    assert_eq!(late.wait(), 9);
}

fn restart() {
    let restarted = Command::new("node-containerd").arg("restart").status();
    assert!(restarted.expect("the node can restart containerd").success());
    // The socket is there before the CRI plugin has found its pods again.
    eventually("the CRI plugin answers", || {
        let version: Result<e2e::cri::messages::VersionResponse, _> =
            e2e::cri::call("RuntimeService/Version", &e2e::cri::messages::Empty::new());
        version.is_ok()
    });
}

fn no_line_is_missing(counter: &Container) {
    let lines: Vec<String> = counter.log().lines().into_iter().map(|line| line.text).collect();
    let expected: Vec<String> = (1..=lines.len()).map(|number| format!("line {number}")).collect();
    assert_eq!(lines, expected, "in {}", counter.log().path().display());
}
