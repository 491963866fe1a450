//! Streams through CRI: exec, attach, log files.

use e2e::cri::{Container, Log, Pod, Sandboxer, Stream};
use e2e::{BUSYBOX, FOREVER, eventually, noise, sha256};
use std::time::{Duration, Instant};

crate::for_each_sandboxer!(long: execs_stream_both_ways, attached_streams_and_log_files_agree);

fn execs_stream_both_ways(sandboxer: Sandboxer) {
    let pod = Pod::new("exec", sandboxer).run();
    let container = pod.container("main", BUSYBOX).command(&FOREVER).start();
    input_comes_back_from_cat(&container);
    output_and_exit_code_are_the_commands_own(&container);
    a_terminal_follows_its_window(&container);
    a_reader_that_stalls_loses_nothing_and_blocks_nobody(&container);
    let missing = container.try_exec(&["/no/such/command"], None).expect_err("there is no such command");
    assert!(missing.message.contains("No such file"), "{missing}");
}

fn input_comes_back_from_cat(container: &Container) {
    let input = noise(1 << 20);
    let mut session = container.exec_streams(&["/bin/cat"], false);
    let feeder = session.feed(input.clone());
    session.expect_bytes(input.len());
    feeder.join().expect("the input is taken");
    assert!(session.stdout() == input, "cat changed its input");
    if session.can_end_input() {
        session.end_input();
        assert_eq!(session.finish().code, 0);
    } else {
        session.hang_up();
    }
}

fn output_and_exit_code_are_the_commands_own(container: &Container) {
    let script = "head -c 1048576 /dev/urandom > /tmp/noise; sha256sum < /tmp/noise >&2; cat /tmp/noise; exit 42";
    let finished = container.exec_streams(&["/bin/sh", "-c", script], false).finish();
    assert_eq!(finished.code, 42);
    assert_eq!(finished.stdout.len(), 1 << 20);
    assert_eq!(finished.stderr().split_whitespace().next(), Some(sha256(&finished.stdout).as_str()));
}

fn a_terminal_follows_its_window(container: &Container) {
    let mut session = container.exec_streams(&["/bin/sh"], true);
    session.resize(91, 33);
    session.expect("#");
    // A size that comes late is no error, so the shell is asked until it has it.
    say_size_until(&mut session, "33 91");
    session.resize(123, 45);
    say_size_until(&mut session, "45 123");
    session.type_in("exit 7\n");
    assert_eq!(session.finish().code, 7);
}

fn say_size_until(session: &mut e2e::cri::Session, size: &str) {
    session.type_in(&format!("until stty size | grep -q '{size}'; do sleep 0.1; done; echo it is $((1 + 1))\n"));
    session.expect("it is 2");
}

/// Every buffer on the way is full long before.
const STALL: Duration = Duration::from_mins(1);
/// More than they all hold.
const MUCH: usize = 12 << 20;

fn a_reader_that_stalls_loses_nothing_and_blocks_nobody(container: &Container) {
    let script = format!("yes 0123456789abcde | head -c {MUCH}");
    let stalled = container.exec_streams(&["/bin/sh", "-c", &script], false);
    let writes = || container.shell("pidof yes").code == 0;
    eventually("the writer has begun", writes);
    let started = Instant::now();
    while started.elapsed() < STALL {
        assert_eq!(container.exec(&["/bin/echo", "here"]).stdout(), "here\n");
    }
    assert!(writes(), "the writer did not wait for its reader");
    let finished = stalled.finish();
    assert_eq!(finished.code, 0);
    assert_eq!(finished.stdout.len(), MUCH);
    assert!(finished.stdout.chunks(16).all(|line| line == b"0123456789abcde\n"));
}

fn attached_streams_and_log_files_agree(sandboxer: Sandboxer) {
    let pod = Pod::new("attach", sandboxer).run();
    // They run side by side, each with a stream to be looked at.
    let counter = pod.container("counter", BUSYBOX).shell(COUNT).start();
    input_that_ends_once_ends_the_container(&pod);
    input_that_is_ended_is_read_to_its_end(&pod);
    a_terminal_can_be_left_and_taken_up(&pod);
    lines_longer_than_the_log_takes_are_put_together(&pod);
    attached_output_is_in_the_log_too(&counter);
    a_rotated_log_goes_on_in_a_new_file(&counter);
}

/// Numbers its lines, so that one that is lost is missed.
const COUNT: &str = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done";

/// `stdin: true, stdinOnce: true`: whoever attaches first feeds it, and ends it by leaving.
fn input_that_ends_once_ends_the_container(pod: &Pod) {
    let container = pod.container("once", BUSYBOX).command(&["/bin/cat"]).stdin(true).start();
    let input: String = (0..20_000).map(|number| format!("line {number}\n")).collect();
    let mut session = container.attach(true);
    let feeder = session.feed(input.clone().into_bytes());
    session.expect_bytes(input.len());
    feeder.join().expect("the input is taken");
    if session.can_end_input() {
        session.end_input();
    } else {
        session.hang_up();
    }
    assert_eq!(container.wait(), 0);
    assert!(container.log().stdout() == input, "{} bytes of {}", container.log().stdout().len(), input.len());
}

/// More than the pipes on the way hold, for a program that says nothing before it has it all. containerd 1.7 cannot be told
/// the end alone, and forgets what is under way when its client leaves (with runc too).
fn input_that_is_ended_is_read_to_its_end(pod: &Pod) {
    let container = pod.container("sum", BUSYBOX).command(&["/bin/sha256sum"]).stdin(true).start();
    let input = noise(1 << 18);
    let mut session = container.attach(true);
    if !session.can_end_input() {
        return;
    }
    session.feed(input.clone()).join().expect("the input is taken");
    session.end_input();
    assert_eq!(container.wait(), 0);
    assert_eq!(container.log().stdout().split_whitespace().next(), Some(sha256(&input).as_str()));
}

fn a_terminal_can_be_left_and_taken_up(pod: &Pod) {
    let container = pod.container("shell", BUSYBOX).command(&["/bin/sh"]).stdin(false).tty().start();
    let mut first = container.attach(true);
    first.type_in("kept=$((40 + 2)); echo kept\n");
    first.expect("kept\r\n");
    first.hang_up();
    let mut second = container.attach(true);
    second.resize(77, 22);
    say_size_until(&mut second, "22 77");
    second.type_in("exit $kept\n");
    assert_eq!(container.wait(), 42);
}

/// containerd cuts lines at 16 KiB and marks the parts.
fn lines_longer_than_the_log_takes_are_put_together(pod: &Pod) {
    let script = "head -c 300000 /dev/zero | tr '\\0' x; echo; echo the end";
    let container = pod.container("long", BUSYBOX).shell(script).start();
    assert_eq!(container.wait(), 0);
    let text = container.log().stdout();
    assert!(text == format!("{}\nthe end\n", "x".repeat(300_000)), "{} bytes are in the log", text.len());
    assert!(container.log().lines().iter().any(|line| !line.whole));
}

fn attached_output_is_in_the_log_too(counter: &Container) {
    let mut session = counter.attach(false);
    session.expect("line ");
    session.expect_bytes(200);
    let seen = String::from_utf8_lossy(session.stdout()).into_owned();
    session.hang_up();
    let whole = &seen[..seen.rfind('\n').expect("200 bytes are many lines")];
    eventually("the log has what was seen", || counter.log().stdout().contains(whole));
}

/// As kubelet rotates: the file is renamed, then containerd is told.
fn a_rotated_log_goes_on_in_a_new_file(counter: &Container) {
    let rotated = counter.log().path().with_extension("log.1");
    std::fs::rename(counter.log().path(), &rotated).expect("the log can be renamed");
    counter.reopen_log().expect("containerd opens a new log");
    eventually("lines go to the new file", || counter.log().lines().len() > 10);
    counter.stop(Duration::ZERO).expect("it stops");
    let (old, new) = (Log::new(rotated).lines(), counter.log().lines());
    let lines: Vec<String> = old.into_iter().chain(new).map(|line| line.text).collect();
    let expected: Vec<String> = (1..=lines.len()).map(|number| format!("line {number}")).collect();
    assert_eq!(lines, expected);
    assert!(counter.log().lines().iter().all(|line| line.stream == Stream::Stdout));
}
