//! What a guest was told is on its disk is there after its machine lost power, whenever that was.

use e2e::container::ctr;
use e2e::leaks::{Traces, assert_nothing_left_since, new_process};
use e2e::{BUSYBOX, Container, Running, kill_process, noise, run};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// The file system has a journal there, which is replayed.
const SNAPSHOTTER: &str = "devmapper";

/// Shows what earlier machines left, then adds records: each is a file of its own and a line of a file that grows, both
/// with fsync, and only then is it told.
const RECORDER: &str = r#"
mkdir -p /records && cd /records
for file in *; do
    [ -e "$file" ] || break
    if read -r content <"$file" && [ "$content" = "$file" ]; then echo "kept $file"; else echo "damaged $file"; fi
done
while read -r line; do echo "logged $line"; done 2>/dev/null </log
echo ready
read -r boot </proc/sys/kernel/random/boot_id
i=0
while i=$((i + 1)); do
    echo "$boot-$i" | dd of="$boot-$i" conv=fsync 2>/dev/null || echo failed
    echo "$boot-$i" | dd of=/log oflag=append conv=notrunc,fsync 2>/dev/null || echo failed
    echo "told $boot-$i"
done
"#;

#[test]
fn what_was_told_to_be_written_survives_three_power_cuts() {
    cut_the_power(3);
}

#[test]
#[ignore = "`make test-long`"]
fn what_was_told_to_be_written_survives_fifty_power_cuts() {
    cut_the_power(50);
}

fn cut_the_power(rounds: usize) {
    let before = Traces::now();
    let container = Container::new(BUSYBOX, SNAPSHOTTER).shell(RECORDER).create();
    let flushes = flushes_of_the_pool();
    let mut told = BTreeSet::new();
    for (round, moment) in noise(rounds).into_iter().enumerate() {
        // From the first record on: a second is ten records or more.
        let seen = run_until_power_cut(&container, Duration::from_millis(4 * u64::from(moment)));
        assert!(seen.iter().any(|line| line.starts_with("told")), "round {round}: {seen:?}");
        assert!(!seen.iter().any(|line| line == "failed"), "round {round}: {seen:?}");
        for kind in ["kept", "logged"] {
            let found = of_kind(&seen, kind);
            let lost: Vec<_> = told.difference(&found).collect();
            assert!(lost.is_empty(), "round {round}: of {} records, not {kind}: {lost:?}", told.len());
        }
        told.extend(of_kind(&seen, "told"));
    }
    let flushes = flushes_of_the_pool() - flushes;
    assert!(flushes >= 2 * told.len() as u64, "{flushes} flushes reached the disk for {} records", told.len());
    println!("{} records in {rounds} rounds, {flushes} flushes", told.len());
    drop(container);
    assert_nothing_left_since(&before);
}

/// Boots a machine on the container's disk and ends it, in the middle of whatever it does, so long after the first record.
fn run_until_power_cut(container: &Running, moment: Duration) -> Vec<String> {
    let before = Traces::now();
    let mut start = Command::new("ctr");
    start.args(["task", "start", container.id()]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut task = start.spawn().expect("ctr is installed");
    let (sender, lines) = mpsc::channel();
    let output = BufReader::new(task.stdout.take().expect("a pipe"));
    let reader = std::thread::spawn(move || {
        let lines = output.lines().map(|line| line.expect("ctr writes text"));
        lines.for_each(|line| sender.send(line).expect("the test listens"));
    });
    let mut seen = Vec::new();
    while !seen.last().is_some_and(|line: &String| line.starts_with("told")) {
        let line = lines.recv_timeout(e2e::PATIENCE);
        seen.push(line.unwrap_or_else(|_| panic!("no record; the output was {seen:?}")));
    }
    std::thread::sleep(moment);
    kill_process(new_process(&before, "bulkhead-vmm"));
    task.wait().expect("ctr ends");
    reader.join().expect("the reader does not panic");
    seen.extend(lines.try_iter());
    ctr(&["task", "delete", "--force", container.id()]);
    seen
}

fn of_kind(lines: &[String], kind: &str) -> BTreeSet<String> {
    let records = lines.iter().filter_map(|line| line.strip_prefix(kind)?.strip_prefix(' '));
    records.map(str::to_owned).collect()
}

/// How often the thin pool, where the container's disk is, was asked to make everything durable. A thin disk's own counters
/// do not tell.
fn flushes_of_the_pool() -> u64 {
    let device = run(&["losetup", "--noheadings", "--output", "NAME", "--associated", "/var/lib/devmapper/data"]);
    let name = device.trim().trim_start_matches("/dev/");
    let counters = std::fs::read_to_string(format!("/sys/block/{name}/stat")).expect("the pool is there");
    // Their order: Documentation/block/stat.rst of the kernel.
    counters.split_whitespace().nth(15).expect("flushes are counted").parse().expect("a number")
}
