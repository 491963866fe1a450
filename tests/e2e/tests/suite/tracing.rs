//! What a pod's start took, as its shim writes it.

use e2e::cri::Sandboxer;
use e2e::node_config::{NodeConfig, templates_are_off};
use e2e::{BUSYBOX, Container, FOREVER};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Name, start and length of a span, in microseconds.
type Span = (String, f64, f64);

/// A pod's spans by row.
fn rows(pod: &str) -> BTreeMap<String, Vec<Span>> {
    let output = Command::new("/opt/bulkhead/bin/bulkhead").args(["trace", pod]).output().expect("it is installed");
    let trace: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let events = trace["traceEvents"].as_array().expect("there are events");
    let mut rows = BTreeMap::new();
    for row in events.iter().filter(|event| event["ph"] == "M") {
        let spans = events.iter().filter(|event| event["ph"] == "X" && event["tid"] == row["tid"]);
        let span = |span: &Value| {
            let number = |key: &str| span[key].as_f64().expect("a number");
            (span["name"].as_str().expect("a name").to_owned(), number("ts"), number("dur"))
        };
        rows.insert(row["args"]["name"].as_str().expect("a name").to_owned(), spans.map(span).collect());
    }
    rows
}

/// One span ends before another begins, or lies in it. Ends are compared with the rounding of the file in mind.
fn assert_nested(row: &str, spans: &[Span]) {
    const ROUNDING: f64 = 0.01;
    let end = |span: &Span| span.1 + span.2;
    for (index, one) in spans.iter().enumerate() {
        for other in &spans[index + 1..] {
            let apart = end(one) <= other.1 + ROUNDING || end(other) <= one.1 + ROUNDING;
            let inside =
                |inner: &Span, outer: &Span| inner.1 + ROUNDING >= outer.1 && end(inner) <= end(outer) + ROUNDING;
            assert!(apart || inside(one, other) || inside(other, one), "{row}: {one:?} and {other:?} overlap");
        }
    }
}

fn assert_has(rows: &BTreeMap<String, Vec<Span>>, row: &str, names: &[&str]) {
    let spans = rows.get(row).unwrap_or_else(|| panic!("no row {row}: {:?}", rows.keys()));
    for name in names {
        assert!(spans.iter().any(|span| span.0 == *name), "{row} lacks {name}: {spans:#?}");
    }
}

#[test]
fn spans_of_one_pod_are_nested_and_complete() {
    let _config =
        NodeConfig::with(if templates_are_off() { "trace = true\n" } else { "trace = true\ntemplates = false\n" });
    let pod = e2e::cri::Pod::new("traced", Sandboxer::PodSandbox).run();
    let container = pod.container("sleeps", BUSYBOX).command(&FOREVER).start();
    let rows = rows(pod.id());
    for (row, spans) in &rows {
        assert_nested(row, spans);
    }
    let shim = ["start", "daemon's program", "sandbox", "prepare", "cgroup", "spawn", "boot", "guest boots"];
    assert_has(&rows, "shim", &shim);
    assert_has(&rows, "shim", &["network of the node", "connect", "configure", "network of the guest"]);
    assert_has(&rows, "vmm", &["program", "jail", "memory", "kvm", "devices", "threads"]);
    assert_has(&rows, "guest", &["kernel", "mounts", "settings", "runtime", "listening", "randomness"]);
    let row = format!("container {}", container.id());
    assert_has(&rows, &row, &["create", "attach", "create in the guest", "root filesystem", "crun create", "start"]);
}

#[test]
fn a_restored_pod_shows_nothing_of_its_templates_boot() {
    if templates_are_off() {
        println!("test skipped: this node's templates are switched off");
        return;
    }
    let _config = NodeConfig::with("trace = true\n");
    let container = Container::new(BUSYBOX, "overlayfs").command(&FOREVER).start();
    let rows = rows(container.id());
    assert_has(&rows, "shim", &["restore a template", "connect", "configure"]);
    assert_has(&rows, "vmm", &["program", "jail", "memory", "kvm", "devices", "devices restored", "threads"]);
    assert_has(&rows, "guest", &["listening", "randomness"]);
    assert!(rows["guest"].iter().all(|span| span.0 != "kernel"), "{rows:#?}");
}

#[test]
fn without_the_setting_there_is_no_trace() {
    let container = Container::new(BUSYBOX, "overlayfs").command(&FOREVER).start();
    let place = Path::new("/run/bulkhead/pods/default").join(container.id());
    assert!(place.join("state.json").exists() && !place.join("trace.json").exists());
}
