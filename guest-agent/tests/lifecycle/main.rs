//! The agent with a real crun, driven through its calls and streams, in namespaces of this machine.
//!
//! Each test runs in a process of its own: PID 1 of a pid namespace, with private mounts and a cgroup below the
//! machine's. Needs root, cgroup v2 mounted somewhere or mountable, and `BULKHEAD_TEST_CRUN`, the path that
//! `cargo xtask crun` prints; otherwise the tests are skipped and say so. Limits can't be tested here: the
//! controllers may belong to cgroup v1. The node tests do that.

#![expect(clippy::unwrap_used, reason = "whatever is missing ends the test")]

mod fixture;
mod pids;

use agent_protocol::agent::{ContainerRequest, ResizeTerminalRequest, SignalRequest};
use agent_protocol::stream::Channel;
use fixture::{Guest, code, in_guest, process};
use std::time::Duration;
use ttrpc::Code;

#[test]
fn output_and_exit_code_arrive() {
    in_guest("output_and_exit_code_arrive", async |guest| {
        guest.create("web", "echo out; echo err >&2; exit 3").await.unwrap();
        let early = guest.wait_in_background("web", "");
        let mut out = guest.stream("web", "", Channel::Stdout).await.unwrap();
        let mut err = guest.stream("web", "", Channel::Stderr).await.unwrap();
        guest.start("web", "").await.unwrap();
        assert_eq!(out.read_to_end().await, b"out\n");
        assert_eq!(err.read_to_end().await, b"err\n");
        assert_eq!(early.await.unwrap(), 3);
        assert_eq!(guest.wait("web", "").await.unwrap(), 3);
        guest.delete("web", "").await.unwrap();
        assert_eq!(code(guest.delete("web", "").await), Code::NOT_FOUND);
        guest.assert_nothing_is_left();
    });
}

#[test]
fn a_name_can_be_used_again() {
    in_guest("a_name_can_be_used_again", async |guest| {
        for _ in 0..5 {
            guest.run("web", "true").await;
        }
        guest.assert_nothing_is_left();
    });
}

#[test]
fn output_is_byte_exact_when_the_process_ends_first() {
    in_guest("output_is_byte_exact_when_the_process_ends_first", async |guest| {
        guest.create("web", "head -c 8388608 /dev/zero | tr '\\0' x").await.unwrap();
        guest.start("web", "").await.unwrap();
        let mut out = guest.stream("web", "", Channel::Stdout).await.unwrap();
        let output = out.read_to_end().await;
        assert_eq!(output.len(), 8 << 20);
        assert!(output.iter().all(|&byte| byte == b'x'));
        assert_eq!(guest.wait("web", "").await.unwrap(), 0);
    });
}

#[test]
fn input_ends_when_the_shim_says_so() {
    in_guest("input_ends_when_the_shim_says_so", async |guest| {
        guest.create("web", "cat; echo done").await.unwrap();
        let mut input = guest.stream("web", "", Channel::Stdin).await.unwrap();
        let mut out = guest.stream("web", "", Channel::Stdout).await.unwrap();
        guest.start("web", "").await.unwrap();
        input.write(b"hello\n").await;
        input.end().await;
        assert_eq!(out.read_to_end().await, b"hello\ndone\n");
        assert_eq!(guest.wait("web", "").await.unwrap(), 0);
    });
}

#[test]
fn twenty_processes_are_added_at_once() {
    in_guest("twenty_processes_are_added_at_once", async |guest| {
        guest.create("web", "sleep 60").await.unwrap();
        guest.start("web", "").await.unwrap();
        let runs = (0..20).map(|n| {
            let guest = &guest;
            async move {
                let exec = format!("e{n}");
                guest.add("web", &exec, &format!("echo {n}; exit {n}")).await.unwrap();
                let mut out = guest.stream("web", &exec, Channel::Stdout).await.unwrap();
                guest.start("web", &exec).await.unwrap();
                assert_eq!(out.read_to_end().await, format!("{n}\n").as_bytes());
                assert_eq!(guest.wait("web", &exec).await.unwrap(), n);
                guest.delete("web", &exec).await.unwrap();
            }
        });
        futures::future::join_all(runs).await;
        guest.kill("web", libc::SIGKILL).await.unwrap();
        assert_eq!(guest.wait("web", "").await.unwrap(), 137);
    });
}

#[test]
fn seccomp_holds_for_added_processes() {
    in_guest("seccomp_holds_for_added_processes", async |guest| {
        let mut spec = guest.spec("sleep 60");
        spec["linux"]["seccomp"] = serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]
        });
        guest.create_with("web", &spec).await.unwrap();
        guest.start("web", "").await.unwrap();
        guest.add("web", "e1", "grep Seccomp: /proc/self/status; mkdir /dev/shm/x && echo made").await.unwrap();
        let mut out = guest.stream("web", "e1", Channel::Stdout).await.unwrap();
        guest.start("web", "e1").await.unwrap();
        assert_eq!(out.read_to_end().await, b"Seccomp:\t2\n");
    });
}

#[test]
fn added_processes_have_the_containers_oom_score() {
    in_guest("added_processes_have_the_containers_oom_score", async |guest| {
        let mut spec = guest.spec("cat /proc/self/oom_score_adj; sleep 60");
        spec["process"]["oomScoreAdj"] = 321.into();
        guest.create_with("web", &spec).await.unwrap();
        let mut out = guest.stream("web", "", Channel::Stdout).await.unwrap();
        guest.start("web", "").await.unwrap();
        assert_eq!(out.read_frame().await.unwrap(), b"321\n");
        guest.add("web", "e1", "cat /proc/self/oom_score_adj").await.unwrap();
        let mut out = guest.stream("web", "e1", Channel::Stdout).await.unwrap();
        guest.start("web", "e1").await.unwrap();
        assert_eq!(out.read_to_end().await, b"321\n");
    });
}

#[test]
fn a_missing_command_is_named_and_leaves_nothing() {
    in_guest("a_missing_command_is_named_and_leaves_nothing", async |guest| {
        let mut spec = guest.spec("");
        spec["process"]["args"] = serde_json::json!(["no-such-command"]);
        let error = guest.create_with("web", &spec).await.unwrap_err().to_string();
        assert!(error.contains("no-such-command"), "{error}");
        guest.assert_nothing_is_left();

        guest.create("web", "sleep 60").await.unwrap();
        guest.start("web", "").await.unwrap();
        guest.add_process("web", "e1", serde_json::json!({"args": ["no-such-command"], "cwd": "/"})).await.unwrap();
        let error = guest.start("web", "e1").await.unwrap_err().to_string();
        assert!(error.contains("no-such-command"), "{error}");
        guest.delete("web", "e1").await.unwrap();
    });
}

#[test]
fn a_terminal_has_a_size_and_both_directions() {
    in_guest("a_terminal_has_a_size_and_both_directions", async |guest| {
        let mut spec = guest.spec("read line; stty size; echo got $line");
        spec["process"]["terminal"] = true.into();
        guest.create_with("web", &spec).await.unwrap();
        let resize = ResizeTerminalRequest { container_id: "web".into(), columns: 132, rows: 43, ..Default::default() };
        guest.agent.resize_terminal(fixture::context(), &resize).await.unwrap();
        let mut input = guest.stream("web", "", Channel::Stdin).await.unwrap();
        let mut out = guest.stream("web", "", Channel::Stdout).await.unwrap();
        guest.start("web", "").await.unwrap();
        input.write(b"hello\n").await;
        let output = String::from_utf8(out.read_to_end().await).unwrap();
        assert!(output.contains("43 132") && output.contains("got hello"), "{output}");
        assert_eq!(guest.wait("web", "").await.unwrap(), 0);
        guest.agent.resize_terminal(fixture::context(), &resize).await.unwrap();
    });
}

#[test]
fn an_added_process_can_have_a_terminal() {
    in_guest("an_added_process_can_have_a_terminal", async |guest| {
        guest.create("web", "sleep 60").await.unwrap();
        guest.start("web", "").await.unwrap();
        let process = process("tty && exit 7", true);
        guest.add_process("web", "e1", process).await.unwrap();
        let mut out = guest.stream("web", "e1", Channel::Stdout).await.unwrap();
        guest.start("web", "e1").await.unwrap();
        let output = String::from_utf8(out.read_to_end().await).unwrap();
        assert!(output.starts_with("/dev/pts/"), "{output}");
        assert_eq!(guest.wait("web", "e1").await.unwrap(), 7);
    });
}

#[test]
fn what_never_ran_is_killed_and_deleted() {
    in_guest("what_never_ran_is_killed_and_deleted", async |guest| {
        guest.create("web", "sleep 60").await.unwrap();
        guest.delete("web", "").await.unwrap();
        guest.create("web", "sleep 60").await.unwrap();
        guest.kill("web", libc::SIGTERM).await.unwrap();
        assert_eq!(guest.wait("web", "").await.unwrap(), 137);
        guest.delete("web", "").await.unwrap();
        guest.create("web", "sleep 60").await.unwrap();
        guest.start("web", "").await.unwrap();
        guest.add("web", "e1", "true").await.unwrap();
        let waiting = guest.wait_in_background("web", "e1");
        guest.delete("web", "e1").await.unwrap();
        assert_eq!(code(waiting.await), Code::NOT_FOUND);
        guest.kill("web", libc::SIGKILL).await.unwrap();
        guest.wait("web", "").await.unwrap();
        guest.delete("web", "").await.unwrap();
        guest.assert_nothing_is_left();
    });
}

#[test]
fn calls_in_the_wrong_state_are_refused() {
    in_guest("calls_in_the_wrong_state_are_refused", async |guest| {
        assert_eq!(code(guest.start("web", "").await), Code::NOT_FOUND);
        guest.create("web", "sleep 60").await.unwrap();
        assert_eq!(code(guest.create("web", "true").await), Code::ALREADY_EXISTS);
        guest.start("web", "").await.unwrap();
        assert_eq!(code(guest.start("web", "").await), Code::FAILED_PRECONDITION);
        assert_eq!(code(guest.delete("web", "").await), Code::FAILED_PRECONDITION);
        guest.add("web", "e1", "true").await.unwrap();
        assert_eq!(code(guest.add("web", "e1", "true").await), Code::ALREADY_EXISTS);
        assert!(guest.stream("web", "nobody", Channel::Stdout).await.is_err());
        guest.kill("web", libc::SIGKILL).await.unwrap();
        guest.wait("web", "").await.unwrap();
        assert_eq!(code(guest.kill("web", libc::SIGKILL).await), Code::NOT_FOUND);
        assert_eq!(code(guest.start("web", "e1").await), Code::FAILED_PRECONDITION);
        assert_eq!(code(guest.add("web", "e2", "true").await), Code::FAILED_PRECONDITION);
    });
}

#[test]
fn signals_reach_one_process_or_all() {
    in_guest("signals_reach_one_process_or_all", async |guest| {
        guest.create("web", "trap 'exit 9' TERM; while :; do sleep 0.05; done").await.unwrap();
        guest.start("web", "").await.unwrap();
        for exec in ["e1", "e2"] {
            guest.add("web", exec, "exec sleep 60").await.unwrap();
            guest.start("web", exec).await.unwrap();
        }
        let one = SignalRequest { container_id: "web".into(), exec_id: "e1".into(), signal: 15, ..Default::default() };
        guest.agent.signal(fixture::context(), &one).await.unwrap();
        assert_eq!(guest.wait("web", "e1").await.unwrap(), 143);
        let all = SignalRequest { container_id: "web".into(), signal: 15, all: true, ..Default::default() };
        guest.agent.signal(fixture::context(), &all).await.unwrap();
        assert_eq!(guest.wait("web", "e2").await.unwrap(), 143);
        assert_eq!(guest.wait("web", "").await.unwrap(), 9);
    });
}

#[test]
fn a_container_ends_after_its_added_processes() {
    in_guest("a_container_ends_after_its_added_processes", async |guest| {
        guest.create("web", "read line").await.unwrap();
        let mut input = guest.stream("web", "", Channel::Stdin).await.unwrap();
        guest.start("web", "").await.unwrap();
        guest.add("web", "e1", "sleep 60").await.unwrap();
        guest.start("web", "e1").await.unwrap();
        let exec = guest.wait_in_background("web", "e1");
        input.end().await;
        assert_eq!(guest.wait("web", "").await.unwrap(), 1);
        assert!(exec.is_finished(), "the added process's end is told first");
        assert_eq!(exec.await.unwrap(), 137);
    });
}

#[test]
fn a_child_that_holds_the_output_does_not_hold_up_the_end() {
    in_guest("a_child_that_holds_the_output_does_not_hold_up_the_end", async |guest| {
        guest.create("web", "sleep 60").await.unwrap();
        guest.start("web", "").await.unwrap();
        guest.add("web", "e1", "sleep 59 & echo started").await.unwrap();
        let mut out = guest.stream("web", "e1", Channel::Stdout).await.unwrap();
        guest.start("web", "e1").await.unwrap();
        assert_eq!(out.read_frame().await.unwrap(), b"started\n");
        assert_eq!(guest.wait("web", "e1").await.unwrap(), 0);
        let open = tokio::time::timeout(Duration::from_millis(100), out.read_frame()).await;
        assert!(open.is_err(), "the channel stays open");
        guest.delete("web", "e1").await.unwrap();
        assert!(out.read_frame().await.is_none(), "deleting ends the connection");
    });
}

#[test]
fn a_paused_container_stands_still() {
    in_guest("a_paused_container_stands_still", async |guest| {
        guest.create("web", "while :; do echo x; sleep 0.01; done").await.unwrap();
        let mut out = guest.stream("web", "", Channel::Stdout).await.unwrap();
        guest.start("web", "").await.unwrap();
        out.read_frame().await.unwrap();
        let request = ContainerRequest { container_id: "web".into(), ..Default::default() };
        guest.agent.pause(fixture::context(), &request).await.unwrap();
        while tokio::time::timeout(Duration::from_millis(200), out.read_frame()).await.is_ok() {}
        guest.add("web", "e1", "true").await.unwrap();
        assert_eq!(code(guest.start("web", "e1").await), Code::FAILED_PRECONDITION);
        guest.agent.resume(fixture::context(), &request).await.unwrap();
        out.read_frame().await.unwrap();
        let listed = guest.agent.list_processes(fixture::context(), &request).await.unwrap();
        assert!(!listed.pids.is_empty());
        guest.agent.pause(fixture::context(), &request).await.unwrap();
        guest.kill("web", libc::SIGKILL).await.unwrap();
        assert_eq!(guest.wait("web", "").await.unwrap(), 137);
        guest.delete("web", "").await.unwrap();
        guest.assert_nothing_is_left();
    });
}

#[test]
fn a_hundred_short_containers_leave_nothing() {
    in_guest("a_hundred_short_containers_leave_nothing", async |guest: &Guest| {
        // The first call is what makes the connection.
        guest.run("first", "true").await;
        let before = guest.open_descriptors();
        for n in 0..50 {
            let (a, b) = (format!("a{n}"), format!("b{n}"));
            futures::future::join(guest.run(&a, "true"), guest.run(&b, "true")).await;
        }
        guest.assert_nothing_is_left();
        assert_eq!(guest.open_descriptors(), before);
    });
}
