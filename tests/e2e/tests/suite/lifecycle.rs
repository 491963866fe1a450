//! From create to delete: exit codes, signals, pause, metrics.

use e2e::container::ctr;
use e2e::{BUSYBOX, Container, Running, eventually};
use std::time::Duration;

crate::for_each_snapshotter!(
    a_container_has_its_own_kernel_name_and_memory,
    a_running_container_is_measured_paused_and_killed,
    a_container_that_handles_a_signal_ends_as_it_likes,
);

fn a_container_has_its_own_kernel_name_and_memory(snapshotter: &str) {
    let container = Container::new(BUSYBOX, snapshotter).argument("--memory-limit=134217728");
    let id = container.id().to_owned();
    let script = "uname -r; hostname; awk '/MemTotal/ { print $2 }' /proc/meminfo; id -u; \
                  read first < /proc/1/comm; echo $first; exit 3";
    let finished = container.shell(script).run();
    assert_eq!(finished.code, 3, "{}", finished.stderr());
    let output = finished.stdout();
    let lines: Vec<&str> = output.lines().collect();
    let [kernel, hostname, memory, user, first] = lines[..] else { panic!("unexpected output: {output:?}") };
    let node = nix::sys::utsname::uname().expect("the node has a name");
    assert_ne!(kernel, node.release().to_string_lossy());
    assert!(kernel.starts_with("6.12"), "{kernel}");
    assert_eq!(hostname, id);
    let mebibytes = memory.parse::<u64>().expect("a number") / 1024;
    assert!((100..=192).contains(&mebibytes), "{mebibytes} MiB for a limit of 128 MiB");
    assert_eq!((user, first), ("0", "sh"));
}

/// One container, many facts: a boot takes seconds under emulation.
fn a_running_container_is_measured_paused_and_killed(snapshotter: &str) {
    let script = "head -c 16777216 /dev/zero > /dev/shm/ballast; \
                  i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.1; done";
    let container = Container::new(BUSYBOX, snapshotter).argument("--memory-limit=134217728").shell(script).start();
    metrics_count_what_it_uses(&container);
    it_stands_still_while_paused(&container);
    a_signal_ends_an_exec_with_its_exit_code(&container);
    assert_ne!(ctr(&["task", "delete", container.id()]).code, 0, "a running task was deleted");
    assert_eq!(container.status(), "RUNNING");
    container.kill("SIGKILL").success();
    eventually("the task has stopped", || container.status() == "STOPPED");
    let again = container.kill("SIGKILL");
    assert!(again.code != 0 && again.stderr().contains("has ended"), "{}: {}", again.code, again.stderr());
    assert_eq!(container.delete_stopped(), 137);
}

fn a_container_that_handles_a_signal_ends_as_it_likes(snapshotter: &str) {
    let script = "trap 'exit 143' TERM; while :; do sleep 0.1; done";
    let container = Container::new(BUSYBOX, snapshotter).shell(script).start();
    eventually("the shell obeys SIGTERM", || {
        container.kill("SIGTERM");
        container.status() == "STOPPED"
    });
    assert_eq!(container.delete_stopped(), 143);
}

/// A first process ignores signals that it has no handler for, so SIGTERM goes to one that is not the first.
fn a_signal_ends_an_exec_with_its_exit_code(container: &Running) {
    let exec = std::thread::scope(|scope| {
        let line = ["task", "exec", "--exec-id", "victim", container.id(), "/bin/sleep", "3600"];
        let exec = scope.spawn(move || ctr(&line));
        eventually("the exec takes a signal", || {
            let line = ["task", "kill", "--exec-id", "victim", "--signal", "SIGTERM", container.id()];
            ctr(&line).code == 0
        });
        exec.join().expect("the exec's thread does not panic")
    });
    assert_eq!(exec.code, 143, "{}", exec.stderr());
}

fn it_stands_still_while_paused(container: &Running) {
    let count = || container.shell("cat /tmp/count").stdout().trim().parse().unwrap_or(0_u64);
    eventually("the container counts", || count() > 0);
    ctr(&["task", "pause", container.id()]).success();
    assert_eq!(container.status(), "PAUSED");
    let before = cpu_usage(container.id());
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(cpu_usage(container.id()), before, "a paused container used the processor");
    ctr(&["task", "resume", container.id()]).success();
    assert_eq!(container.status(), "RUNNING");
    let resumed = count();
    eventually("the container counts on", || count() > resumed);
}

fn metrics_count_what_it_uses(container: &Running) {
    eventually("the ballast is counted", || {
        let metrics = metrics(container.id());
        let memory = find(&metrics, "memory").expect("memory");
        let number = |name| find(memory, name).and_then(serde_json::Value::as_u64).unwrap_or_default();
        number("usage") > 16 << 20 && number("usage_limit") == 134_217_728
    });
    assert!(cpu_usage(container.id()) > 0);
}

fn metrics(id: &str) -> serde_json::Value {
    let metrics = ctr(&["task", "metrics", "--format", "json", id]).success().stdout();
    serde_json::from_str(&metrics).expect("metrics are JSON")
}

fn cpu_usage(id: &str) -> u64 {
    find(&metrics(id), "usage_usec").and_then(serde_json::Value::as_u64).expect("the processor's usage")
}

/// The first field of that name, however deep.
fn find<'a>(value: &'a serde_json::Value, name: &str) -> Option<&'a serde_json::Value> {
    match value {
        serde_json::Value::Object(fields) => {
            fields.get(name).or_else(|| fields.values().find_map(|field| find(field, name)))
        }
        serde_json::Value::Array(items) => items.iter().find_map(|item| find(item, name)),
        _ => None,
    }
}
