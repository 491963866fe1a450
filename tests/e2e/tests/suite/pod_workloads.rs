//! Pods as people run them: what kubelet does with their containers, from the first to the last.

use e2e::cri::messages::ContainerState;
use e2e::cri::{Container, Pod, Sandboxer};
use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::vmm::Vmm;
use e2e::{BUSYBOX, FOREVER, eventually, probe};
use std::time::Duration;

crate::for_each_sandboxer!(
    quick: a_pod_is_one_machine_from_its_first_container_to_its_last;
    long: a_crashing_container_is_restarted_beside_two_others
);

const GRACE: Duration = Duration::from_secs(30);

fn a_pod_is_one_machine_from_its_first_container_to_its_last(sandboxer: Sandboxer) {
    let before = Traces::now();
    let machines = Vmm::all().len();
    let pod = Pod::new("two", sandboxer).run();
    assert!(pod.ready());

    // An init container runs to its end before the others are made.
    let init = pod.container("init", BUSYBOX).shell("echo ready; exit 0").start();
    assert_eq!(init.wait(), 0);
    assert_eq!(init.log().stdout(), "ready\n");
    the_last_container_is_made_again(&pod);

    let serve = "trap 'echo stopped; exit 0' TERM; echo out; echo err >&2; while :; do sleep 0.1; done";
    let first = pod.container("first", BUSYBOX).shell(serve).start();
    let second = pod.container("second", BUSYBOX).command(&FOREVER).start();
    assert_eq!(Vmm::all().len(), machines + 1, "a pod has one machine");
    they_are_processes_of_one_machine(&[&first, &second]);
    the_node_and_the_neighbour_reach_it(&pod, &second, &first);
    eventually("both lines are logged", || first.log().lines().len() == 2);
    assert_eq!((first.log().stdout(), first.log().stderr()), ("out\n".into(), "err\n".into()));

    first.stop(GRACE).expect("it stops");
    assert_eq!(first.wait(), 0);
    assert_eq!(first.log().stdout(), "out\nstopped\n");
    first.remove().expect("it is removed");
    assert_eq!(first.try_status().expect_err("it is gone").code, 5);
    assert!(second.running() && pod.ready());

    pod.stop().expect("it stops");
    pod.stop().expect("stopping again is no error");
    assert!(!pod.ready());
    assert_eq!(second.status().state, ContainerState::CONTAINER_EXITED.into());
    assert_eq!(second.status().exit_code, 137);
    pod.remove().expect("it is removed");
    pod.remove().expect("removing again is no error");
    assert!(Pod::all().iter().all(|known| known.id != pod.id()));
    drop(pod);
    assert_nothing_left_since(&before);
}

/// By the address that CNI gave the pod, and over localhost.
fn the_node_and_the_neighbour_reach_it(pod: &Pod, server: &Container, neighbour: &Container) {
    server.shell("mkdir /www; echo served >/www/index.html; httpd -h /www -p 8080").success();
    let answer = probe::http(&pod.ip(), 8080, "/index.html");
    assert_eq!(answer, Some((200, "served\n".to_owned())));
    assert_eq!(neighbour.shell("wget -q -O - http://127.0.0.1:8080/index.html").success().stdout(), "served\n");
}

/// A sandbox outlives its only container, which is stopped, removed and made again.
fn the_last_container_is_made_again(pod: &Pod) {
    let again = |attempt| pod.container("again", BUSYBOX).attempt(attempt).command(&FOREVER).start();
    let first = again(0);
    let boot = first.shell("cat /proc/sys/kernel/random/boot_id").stdout();
    first.stop(Duration::ZERO).expect("it stops");
    assert_eq!(first.wait(), 137);
    first.remove().expect("it is removed");
    assert!(pod.ready());
    let second = again(1);
    assert_eq!(second.shell("cat /proc/sys/kernel/random/boot_id").stdout(), boot);
    second.stop(Duration::ZERO).expect("it stops");
    second.remove().expect("it is removed");
}

fn they_are_processes_of_one_machine(containers: &[&Container]) {
    let script = "cat /proc/sys/kernel/random/boot_id; hostname; exit 3";
    let answers: Vec<_> = containers.iter().map(|container| container.shell(script)).collect();
    assert_eq!(answers[0].code, 3);
    assert!(answers[0].stdout().ends_with("\ntwo\n"), "{}", answers[0].stdout());
    assert!(answers.iter().all(|answer| answer.stdout() == answers[0].stdout()));
    let late = containers[0].try_exec(&FOREVER, Some(Duration::from_secs(1)));
    assert_eq!(late.expect_err("a command has a deadline").code, 4);
}

/// Five restarts, as after `CrashLoopBackOff`; the exit codes are a batch job's result.
fn a_crashing_container_is_restarted_beside_two_others(sandboxer: Sandboxer) {
    let pod = Pod::new("crash", sandboxer).run();
    let count = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.5; done";
    let others: Vec<Container> =
        ["one", "two"].iter().map(|name| pod.container(name, BUSYBOX).shell(count).start()).collect();
    let mut last: Option<Container> = None;
    for attempt in 0..=5 {
        let script = format!("echo attempt {attempt}; exit {}", 10 + attempt);
        let crasher = pod.container("crasher", BUSYBOX).attempt(attempt).shell(&script).start();
        assert_eq!(crasher.wait(), 10 + i32::try_from(attempt).expect("a small number"));
        assert_eq!(crasher.status().reason, "Error");
        assert_eq!(crasher.log().stdout(), format!("attempt {attempt}\n"));
        // kubelet keeps the last one that ended.
        if let Some(ended) = last.replace(crasher) {
            ended.remove().expect("it is removed");
        }
    }
    let job = pod.container("job", BUSYBOX).shell("echo done").start();
    assert_eq!((job.wait(), job.status().reason.as_str()), (0, "Completed"));
    for other in &others {
        assert!(other.running(), "{} did not live through it", other.id());
        let lines: Vec<String> = other.log().lines().into_iter().map(|line| line.text).collect();
        let expected: Vec<String> = (1..=lines.len()).map(|number| format!("line {number}")).collect();
        assert_eq!(lines, expected);
    }
}
