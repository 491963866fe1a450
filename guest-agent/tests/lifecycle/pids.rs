//! Containers that see each other's processes.

use crate::fixture::{Guest, code, in_guest};
use agent_protocol::agent::Empty;
use agent_protocol::agent::create_container_request::Pid_namespace;
use ttrpc::Code;

const KILLED: u32 = 128 + 9;

fn pod() -> Pid_namespace {
    Pid_namespace::PodPids(Empty::default())
}

fn of(container: &str) -> Pid_namespace {
    Pid_namespace::PidsOfContainer(container.to_owned())
}

/// Whether a container sees a process with this command.
async fn sees(guest: &Guest, container: &str, command: &str) -> bool {
    let exec = format!("look-{}", command.replace(' ', "-"));
    let lines = "for file in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $file; echo; done 2> /dev/null";
    // A whole line: this script's own has more in it.
    let script = format!("{lines} | grep -qx '{command} '");
    guest.add(container, &exec, &script).await.unwrap();
    guest.start(container, &exec).await.unwrap();
    let found = guest.wait(container, &exec).await.unwrap() == 0;
    guest.delete(container, &exec).await.unwrap();
    found
}

#[test]
fn a_pods_processes_see_each_other_and_outlive_each_other() {
    in_guest("pids::a_pods_processes_see_each_other_and_outlive_each_other", async |guest| {
        guest.join("one", "exec sleep 1001", pod()).await.unwrap();
        // Not even root in the namespace can end it.
        guest.join("two", "kill -9 1; (true &); exec sleep 1002", pod()).await.unwrap();
        guest.create("alone", "exec sleep 1003").await.unwrap();
        guest.start("alone", "").await.unwrap();
        assert!(sees(guest, "one", "sleep 1002").await && sees(guest, "two", "sleep 1001").await);
        assert!(!sees(guest, "one", "sleep 1003").await && !sees(guest, "alone", "sleep 1001").await);
        guest.kill("one", libc::SIGKILL).await.unwrap();
        assert_eq!(guest.wait("one", "").await.unwrap(), KILLED);
        guest.delete("one", "").await.unwrap();
        guest.join("three", "exec sleep 1004", pod()).await.unwrap();
        assert!(!sees(guest, "two", "sleep 1001").await && sees(guest, "two", "sleep 1004").await);
    });
}

#[test]
fn an_ephemeral_container_sees_its_target_and_goes_with_it() {
    in_guest("pids::an_ephemeral_container_sees_its_target_and_goes_with_it", async |guest| {
        guest.create("web", "exec sleep 1001").await.unwrap();
        guest.start("web", "").await.unwrap();
        guest.join("debug", "exec sleep 1002", of("web")).await.unwrap();
        assert!(sees(guest, "debug", "sleep 1001").await && sees(guest, "web", "sleep 1002").await);
        guest.kill("web", libc::SIGKILL).await.unwrap();
        for container in ["web", "debug"] {
            assert_eq!(guest.wait(container, "").await.unwrap(), KILLED);
        }
        assert_eq!(code(guest.join("late", "true", of("web")).await), Code::FAILED_PRECONDITION);
        assert_eq!(code(guest.join("lost", "true", of("nobody")).await), Code::NOT_FOUND);
        for container in ["web", "debug"] {
            guest.delete(container, "").await.unwrap();
        }
        guest.assert_nothing_is_left();
    });
}
