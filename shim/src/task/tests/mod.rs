pub mod harness;

use crate::sandbox::AgentError;
use agent_protocol::stream::Frame;
use containerd_shim_protos::api::{self, Status};
use harness::{Bench, code, soon};
use std::sync::atomic::Ordering;
use std::time::Duration;
use ttrpc::Code;

const SANDBOX: &str = r#"{"io.kubernetes.cri.container-type":"sandbox","io.kubernetes.cri.sandbox-id":"web"}"#;
const MEMBER: &str = r#"{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"web"}"#;

fn sentence(result: ttrpc::Result<api::CreateTaskResponse>) -> String {
    match result.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => status.message,
        other => panic!("not a status: {other}"),
    }
}

#[tokio::test]
async fn a_containers_life_is_told_in_order() {
    let bench = Bench::new().await;
    let created = bench.create("web", "{}").await.unwrap();
    assert_eq!(created.pid, 4242, "the VMM's pid");
    assert_eq!(bench.state("web").await.unwrap().status(), Status::CREATED);
    bench.start("web", "").await.unwrap();
    assert_eq!(bench.state("web").await.unwrap().status(), Status::RUNNING);
    bench.guest.end("web/", 3);
    assert_eq!(bench.wait("web", "").await, 3);
    assert!(bench.guest.called("take back web"), "before the end is told");
    let state = bench.state("web").await.unwrap();
    assert_eq!((state.status(), state.exit_status), (Status::STOPPED, 3));
    let deleted = bench.delete("web", "").await.unwrap();
    assert_eq!((deleted.exit_status, deleted.exited_at.seconds > 0), (3, true));
    assert_eq!(bench.events(4).await, ["create", "start", "exit web 3", "delete"]);
    assert!(bench.guest.called("delete web/"), "the guest wrote its files back");
    assert!(bench.guest.called("write back web"), "its volumes reached their devices");
    assert!(bench.guest.destroyed.load(Ordering::Relaxed), "the microVM goes with its container");
    assert_eq!(code(bench.state("web").await), Code::NOT_FOUND);
}

#[tokio::test]
async fn exits_of_execs_are_told_before_that_of_their_container() {
    let bench = Bench::new().await;
    bench.run("web").await;
    bench.exec("web", "e1").await.unwrap();
    bench.start("web", "e1").await.unwrap();
    bench.guest.end("web/", 0);
    // Time for the wrong order to happen.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(bench.events(2).await, ["exec-added", "exec-started"]);
    assert!(bench.no_event(), "the container's exit was told first");
    bench.guest.end("web/e1", 137);
    assert_eq!(bench.events(2).await, ["exit e1 137", "exit web 0"]);
}

#[tokio::test]
async fn an_immediate_exit_is_told_after_the_start() {
    let bench = Bench::new().await;
    bench.run("web").await;
    bench.guest.end("web/e1", 7);
    bench.exec("web", "e1").await.unwrap();
    bench.start("web", "e1").await.unwrap();
    assert_eq!(bench.events(3).await, ["exec-added", "exec-started", "exit e1 7"]);
}

#[tokio::test]
async fn waiting_may_begin_before_the_start_and_be_shared() {
    let bench = Bench::new().await;
    bench.create("web", "{}").await.unwrap();
    let (first, second, ()) = tokio::join!(bench.wait("web", ""), bench.wait("web", ""), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        bench.start("web", "").await.unwrap();
        bench.guest.end("web/", 42);
    });
    assert_eq!((first, second), (42, 42));
}

#[tokio::test]
async fn what_is_not_possible_now_has_the_code_that_containerd_expects() {
    let bench = Bench::new().await;
    assert_eq!(code(bench.state("web").await), Code::NOT_FOUND);
    bench.run("web").await;
    assert_eq!(code(bench.create("web", "{}").await), Code::ALREADY_EXISTS);
    assert_eq!(code(bench.delete("web", "").await), Code::FAILED_PRECONDITION);
    assert_eq!(code(bench.start("web", "").await), Code::FAILED_PRECONDITION);
    assert_eq!(code(bench.start("web", "none").await), Code::NOT_FOUND);
    bench.exec("web", "e1").await.unwrap();
    assert_eq!(code(bench.exec("web", "e1").await), Code::ALREADY_EXISTS);
    bench.kill("web", "", 15).await.unwrap();
    assert_eq!(bench.wait("web", "").await, 143);
    assert_eq!(code(bench.kill("web", "", 9).await), Code::NOT_FOUND);
    assert_eq!(code(bench.start("web", "e1").await), Code::FAILED_PRECONDITION);
    assert_eq!(code(bench.exec("web", "e2").await), Code::FAILED_PRECONDITION);
    let checkpoint = bench.client.checkpoint(soon(), &api::CheckpointTaskRequest::new()).await;
    assert_eq!(code(checkpoint), Code::UNIMPLEMENTED);
    bench.delete("web", "e1").await.unwrap();
    bench.delete("web", "").await.unwrap();
    assert_eq!(code(bench.delete("web", "").await), Code::NOT_FOUND);
}

#[tokio::test]
async fn what_never_started_can_be_deleted() {
    let bench = Bench::new().await;
    bench.create("web", "{}").await.unwrap();
    assert_eq!(bench.delete("web", "").await.unwrap().exit_status, 137);
    assert_eq!(bench.events(3).await, ["create", "exit web 137", "delete"]);
}

#[tokio::test]
async fn pause_and_resume_are_told() {
    let bench = Bench::new().await;
    bench.run("web").await;
    let resume = api::ResumeRequest { id: "web".into(), ..Default::default() };
    assert_eq!(code(bench.client.resume(soon(), &resume).await), Code::FAILED_PRECONDITION);
    let pause = api::PauseRequest { id: "web".into(), ..Default::default() };
    bench.client.pause(soon(), &pause).await.unwrap();
    assert_eq!(bench.state("web").await.unwrap().status(), Status::PAUSED);
    bench.client.resume(soon(), &resume).await.unwrap();
    assert_eq!(bench.events(2).await, ["paused", "resumed"]);
}

#[tokio::test]
async fn a_lost_microvm_ends_every_process() {
    let bench = Bench::new().await;
    bench.run("web").await;
    bench.exec("web", "e1").await.unwrap();
    bench.start("web", "e1").await.unwrap();
    bench.guest.lose_vm();
    assert_eq!(bench.wait("web", "").await, 137);
    let events = bench.events(4).await;
    assert_eq!(events, ["exec-added", "exec-started", "exit e1 137", "exit web 137"]);
    assert_eq!(bench.state("web").await.unwrap().status(), Status::STOPPED);
    bench.delete("web", "e1").await.unwrap();
    bench.delete("web", "").await.unwrap();
    bench.shut_down().await;
    assert!(bench.is_over().await);
}

#[tokio::test]
async fn a_creation_that_breaks_names_the_microvms_end() {
    let bench = Bench::new().await;
    bench.create("web", SANDBOX).await.unwrap();
    let vm = bench.pod.vm().unwrap();
    bench.guest.lose_vm();
    let broken = AgentError::Broken { call: "create_container" };
    let error = super::create::explain(&*vm, broken.into()).await;
    assert_eq!(error.to_string(), "the microVM is gone: killed");
}

#[tokio::test]
async fn a_failed_creation_leaves_nothing() {
    let bench = Bench::new().await;
    bench.guest.create_fails.store(true, Ordering::Relaxed);
    let Err(ttrpc::Error::RpcStatus(status)) = bench.create("web", "{}").await else { panic!("an error") };
    assert_eq!(status.message, "executable file `foo` not found");
    assert!(bench.guest.destroyed.load(Ordering::Relaxed));
    assert_eq!(code(bench.delete("web", "").await), Code::NOT_FOUND);
    assert!(bench.no_event());
    bench.shut_down().await;
    assert!(bench.is_over().await);
}

#[tokio::test]
async fn bad_input_is_named_before_anything_boots() {
    let bench = Bench::new().await;
    let unknown = r#"{"io.bulkhead.kernel":"/x"}"#;
    assert!(sentence(bench.create("web", unknown).await).starts_with("annotation io.bulkhead.kernel is not known"));
    let mut request = bench.request("web", "{}");
    request.stdout = "/nonexistent/fifo".into();
    let result = bench.client.create(soon(), &request).await;
    assert!(sentence(result).starts_with("cannot open /nonexistent/fifo"));
    std::fs::write(bench.directory.path().join("web/config.json"), r#"{"process":{"args":[]}}"#).unwrap();
    request.stdout = String::new();
    let result = bench.client.create(soon(), &request).await;
    assert_eq!(sentence(result), "container web has no command: process.args is empty");
    assert_eq!(bench.guest.may_boot.available_permits(), 1, "nothing booted");
}

#[tokio::test]
async fn members_share_the_pods_microvm_and_outlive_each_other() {
    let bench = Bench::new().await;
    assert_eq!(code(bench.create("c0", MEMBER).await), Code::FAILED_PRECONDITION);
    bench.create("web", SANDBOX).await.unwrap();
    bench.start("web", "").await.unwrap();
    assert!(!bench.guest.called("create web"), "the sandbox's own process is never run");
    assert_eq!(code(bench.exec("web", "e").await), Code::FAILED_PRECONDITION);
    for _ in 0..2 {
        bench.create("c1", MEMBER).await.unwrap();
        bench.start("c1", "").await.unwrap();
        bench.kill("c1", "", 9).await.unwrap();
        assert_eq!(bench.wait("c1", "").await, 137);
        bench.delete("c1", "").await.unwrap();
        assert!(bench.guest.called("detach c1"));
        bench.shut_down().await;
    }
    assert!(!bench.guest.destroyed.load(Ordering::Relaxed));
    assert!(!bench.is_over().await, "containers are left");
    bench.kill("web", "", 9).await.unwrap();
    assert_eq!(bench.wait("web", "").await, 137);
    bench.delete("web", "").await.unwrap();
    assert!(bench.guest.destroyed.load(Ordering::Relaxed));
    assert!(bench.is_over().await, "the end was asked for before");
}

#[tokio::test]
async fn a_pods_microvm_goes_as_late_as_the_member_that_may_stay_longest() {
    let bench = Bench::new().await;
    bench.create("web", SANDBOX).await.unwrap();
    let scores = || {
        let calls = bench.guest.calls.lock().unwrap();
        calls.iter().filter(|call| call.starts_with("score")).cloned().collect::<Vec<_>>()
    };
    assert!(scores().is_empty(), "the sandbox's own is that of a process that never runs");
    for (id, score) in [("c1", 985), ("c2", -997)] {
        let request = bench.request(id, MEMBER);
        let config = bench.directory.path().join(id).join("config.json");
        let spec = std::fs::read_to_string(&config).unwrap();
        let scored = format!(r#""process":{{"oomScoreAdj":{score},"#);
        std::fs::write(&config, spec.replace(r#""process":{"#, &scored)).unwrap();
        bench.client.create(soon(), &request).await.unwrap();
    }
    assert_eq!(scores(), ["score 985", "score 0"]);
    bench.delete("c2", "").await.unwrap();
    assert_eq!(scores().last().unwrap(), "score 985");
}

#[tokio::test]
async fn a_container_that_is_no_member_does_not_share_a_microvm() {
    let bench = Bench::new().await;
    bench.run("web").await;
    assert_eq!(code(bench.create("other", "{}").await), Code::INVALID_ARGUMENT);
}

#[tokio::test]
async fn a_client_that_goes_away_does_not_cancel_what_it_began() {
    let bench = Bench::new().await;
    bench.guest.may_boot.try_acquire().unwrap().forget();
    let impatient = ttrpc::context::with_duration(Duration::from_millis(50));
    assert!(bench.client.create(impatient, &bench.request("web", "{}")).await.is_err());
    bench.guest.may_boot.add_permits(1);
    assert_eq!(bench.events(1).await, ["create"]);
    bench.start("web", "").await.unwrap();
}

#[tokio::test]
async fn the_guest_that_hangs_does_not_hang_what_the_shim_knows() {
    let bench = Bench::new().await;
    bench.guest.may_boot.try_acquire().unwrap().forget();
    let create = bench.request("web", "{}");
    let client = bench.client.clone();
    let creating = tokio::spawn(async move { client.create(soon(), &create).await });
    let connect = api::ConnectRequest { id: "web".into(), ..Default::default() };
    let quickly = tokio::time::timeout(Duration::from_secs(1), bench.client.connect(soon(), &connect));
    assert_eq!(quickly.await.unwrap().unwrap().shim_pid, std::process::id());
    assert_eq!(code(bench.state("web").await), Code::NOT_FOUND);
    creating.abort();
}

#[tokio::test]
async fn the_exit_waits_for_the_output() {
    let bench = Bench::new().await;
    let mut request = bench.request("web", "{}");
    request.stdout = bench.fifo("stdout");
    bench.client.create(soon(), &request).await.unwrap();
    bench.start("web", "").await.unwrap();
    assert_eq!(bench.state("web").await.unwrap().stdout, request.stdout);
    bench.guest.end("web/", 0);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(bench.state("web").await.unwrap().status(), Status::RUNNING, "output is still open");
    bench.output("web//Stdout", b"done", true).await;
    assert_eq!(bench.wait("web", "").await, 0);
}

#[tokio::test]
async fn version_2_of_the_service_is_served_too() {
    let bench = Bench::new().await;
    bench.run("web").await;
    for (version, expected) in [("v2", Code::OK), ("v3", Code::OK), ("v4", Code::INVALID_ARGUMENT)] {
        let request = ttrpc::Request {
            service: format!("containerd.task.{version}.Task"),
            method: "Connect".into(),
            ..Default::default()
        };
        let result = bench.raw.request(request).await;
        assert_eq!(result.map_or_else(|error| code::<()>(Err(error)), |_| Code::OK), expected, "{version}");
    }
}

#[tokio::test]
async fn processes_and_stats_name_nothing_of_the_guest() {
    let bench = Bench::new().await;
    bench.run("web").await;
    let pids = api::PidsRequest { id: "web".into(), ..Default::default() };
    let pids = bench.client.pids(soon(), &pids).await.unwrap();
    assert_eq!(pids.processes.iter().map(|process| process.pid).collect::<Vec<_>>(), [4242, 4242, 4242]);
    let stats = api::StatsRequest { id: "web".into(), ..Default::default() };
    let stats = bench.client.stats(soon(), &stats).await.unwrap();
    assert_eq!(stats.stats.type_url, "io.containerd.cgroups.v2.Metrics");
}

#[tokio::test]
async fn running_out_of_memory_is_told() {
    let bench = Bench::new().await;
    bench.run("web").await;
    bench.guest.oom.notify_one();
    assert_eq!(bench.events(1).await, ["oom"]);
}

#[tokio::test]
async fn a_container_that_outlives_sigkill_takes_its_microvm_with_it() {
    let bench = Bench::new().await;
    bench.run("web").await;
    bench.guest.ignores_signals.store(true, Ordering::Relaxed);
    bench.kill("web", "", 15).await.unwrap();
    bench.kill("web", "", 9).await.unwrap();
    assert_eq!(bench.state("web").await.unwrap().status(), Status::RUNNING);
    let web = bench.pod.container("web").unwrap();
    tokio::time::pause();
    assert_eq!(web.init.ended().await.status, 137);
    assert!(bench.guest.is_lost());
}

#[tokio::test]
async fn a_slow_kill_of_an_added_process_does_not_cost_the_pod() {
    let bench = Bench::new().await;
    bench.run("web").await;
    bench.exec("web", "e1").await.unwrap();
    bench.start("web", "e1").await.unwrap();
    bench.guest.signals_time_out.store(true, Ordering::Relaxed);
    tokio::time::pause();
    assert_eq!(code(bench.kill("web", "e1", 9).await), Code::DEADLINE_EXCEEDED);
    assert!(!bench.guest.is_lost());
    bench.kill("web", "", 9).await.unwrap();
    assert!(bench.guest.is_lost(), "its container's kill is enforced");
}

#[tokio::test]
async fn input_that_is_closed_before_the_start_ends_at_the_start() {
    let bench = Bench::new().await;
    let mut request = bench.request("web", "{}");
    request.stdin = bench.fifo("stdin");
    bench.client.create(soon(), &request).await.unwrap();
    bench.close_stdin("web", "").await;
    bench.start("web", "").await.unwrap();
    assert_eq!(bench.input("web//Stdin").await, Frame::End);
    bench.exec_with_stdin("web", "e1", &bench.fifo("exec-stdin")).await.unwrap();
    bench.close_stdin("web", "e1").await;
    bench.start("web", "e1").await.unwrap();
    assert_eq!(bench.input("web/e1/Stdin").await, Frame::End);
}

#[tokio::test]
async fn updated_resources_are_the_guests_like_those_at_creation() {
    let bench = Bench::new().await;
    bench.run("web").await;
    bench.update("web", r#"{"cpu":{"cpus":"0-3","mems":"0","shares":5}}"#).await.unwrap();
    assert!(bench.guest.called(r#"update web {"cpu":{"shares":5}}"#));
    let refused = bench.update("web", r#"{"rdma":{"mlx5_0":{"hcaHandles":1}}}"#).await;
    assert_eq!(code(refused), Code::INVALID_ARGUMENT);
    assert_eq!(code(bench.update("web", "[").await), Code::INVALID_ARGUMENT);
}

#[tokio::test]
async fn a_limit_that_the_microvm_cannot_reach_is_refused() {
    let bench = Bench::new().await;
    bench.run("web").await;
    let limit = |bytes: u64| format!(r#"{{"memory":{{"limit":{bytes}}}}}"#);
    bench.update("web", &limit(512 << 20)).await.unwrap();
    let error = bench.update("web", &limit((512 << 20) + 1)).await.unwrap_err().to_string();
    assert!(error.contains("a limit of 513 MiB is more than the microVM's 512 MiB"), "{error}");
    // As the container was created, and containerd repeats it.
    let spec = format!(r#"{{"ociVersion":"1.1.0","linux":{{"resources":{}}}}}"#, limit(1 << 30));
    std::fs::write(bench.directory.path().join("web/config.json"), spec).unwrap();
    bench.update("web", &limit(1 << 30)).await.unwrap();
    assert_eq!(code(bench.update("web", &limit(2 << 30)).await), Code::INVALID_ARGUMENT);
}

#[tokio::test]
async fn a_pod_that_wants_what_is_the_nodes_does_not_boot() {
    let bench = Bench::new().await;
    let request = bench.request("web", SANDBOX);
    let config = bench.directory.path().join("web/config.json");
    let spec = std::fs::read_to_string(&config).unwrap();
    let cases = [(r#",{"type":"network"}"#, "the node's network"), (r#"{"type":"pid"},"#, "the node's process ids")];
    for (namespace, words) in cases {
        std::fs::write(&config, spec.replace(namespace, "")).unwrap();
        let sentence = sentence(bench.client.create(soon(), &request).await);
        assert!(sentence.contains(words), "{sentence:?} lacks {words:?}");
    }
    std::fs::write(&config, spec.replace("annotations\":{", "annotations\":{\"io.bulkhead.cpus\":\"1\",")).unwrap();
    let unknown = "annotation io.bulkhead.cpus is not known";
    assert!(sentence(bench.client.create(soon(), &request).await).starts_with(unknown));
    assert_eq!(bench.guest.may_boot.available_permits(), 1, "nothing booted");
    std::fs::write(&config, spec).unwrap();
    bench.client.create(soon(), &request).await.unwrap();
    let member = MEMBER.replace('{', r#"{"io.bulkhead.vcpus":"lots","#);
    assert!(sentence(bench.create("c1", &member).await).starts_with("annotation io.bulkhead.vcpus must be a number"));
}

#[tokio::test]
async fn a_creation_that_hangs_does_not_keep_the_shim_of_a_pod_that_is_gone() {
    let bench = Bench::new().await;
    bench.create("web", SANDBOX).await.unwrap();
    bench.guest.attach_hangs.store(true, Ordering::Relaxed);
    let (client, request) = (bench.client.clone(), bench.request("c1", MEMBER));
    let creating = tokio::spawn(async move { client.create(soon(), &request).await });
    while !bench.guest.called("attach") {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bench.shut_down().await;
    assert!(!bench.is_over().await, "the pod is there");
    bench.kill("web", "", 9).await.unwrap();
    bench.delete("web", "").await.unwrap();
    assert!(bench.is_over().await);
    creating.abort();
}

#[tokio::test]
async fn a_container_that_is_deleted_while_it_is_created_does_not_stay() {
    let bench = Bench::new().await;
    bench.create("web", SANDBOX).await.unwrap();
    bench.guest.attach_hangs.store(true, Ordering::Relaxed);
    let (client, request) = (bench.client.clone(), bench.request("c1", MEMBER));
    let creating = tokio::spawn(async move { client.create(soon(), &request).await });
    while !bench.guest.called("attach") {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(code(bench.delete("c1", "").await), Code::NOT_FOUND);
    bench.guest.attach_hangs.store(false, Ordering::Relaxed);
    assert_eq!(sentence(creating.await.unwrap()), "container c1 was deleted while it was created");
    assert!(bench.guest.called("detach c1"), "what it had is taken back");
    bench.create("c1", MEMBER).await.unwrap();
    bench.delete("c1", "").await.unwrap();
    bench.kill("web", "", 9).await.unwrap();
    bench.delete("web", "").await.unwrap();
    bench.shut_down().await;
    assert!(bench.is_over().await, "nothing keeps the shim");
}

#[tokio::test]
async fn whoever_deletes_a_container_again_waits_for_the_first_deletion() {
    let bench = Bench::new().await;
    bench.create("web", SANDBOX).await.unwrap();
    bench.create("c1", MEMBER).await.unwrap();
    bench.guest.detach_hangs.store(true, Ordering::Relaxed);
    let request = api::DeleteRequest { id: "c1".into(), ..Default::default() };
    let deleting = || {
        let (client, request) = (bench.client.clone(), request.clone());
        tokio::spawn(async move { client.delete(soon(), &request).await })
    };
    let first = deleting();
    while !bench.guest.called("detach c1") {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut second = deleting();
    let early = tokio::time::timeout(Duration::from_millis(50), &mut second).await;
    assert!(early.is_err(), "containerd would take the container for deleted: {early:?}");
    bench.guest.detach_hangs.store(false, Ordering::Relaxed);
    first.await.unwrap().unwrap();
    assert_eq!(code(second.await.unwrap()), Code::NOT_FOUND);
}

#[tokio::test]
async fn an_added_process_starts_while_its_streams_are_opened() {
    let bench = Bench::new().await;
    bench.run("web").await;
    bench.exec_with_stdin("web", "e1", &bench.fifo("stdin")).await.unwrap();
    bench.guest.streams_follow_start.store(true, Ordering::Relaxed);
    bench.guest.end("web/e1", 7);
    bench.start("web", "e1").await.unwrap();
    assert_eq!(bench.events(3).await, ["exec-added", "exec-started", "exit e1 7"]);
}

#[tokio::test]
async fn an_added_process_that_did_not_start_has_no_exit_and_can_be_deleted() {
    let bench = Bench::new().await;
    bench.run("web").await;
    bench.exec_with_stdin("web", "e1", &bench.fifo("stdin")).await.unwrap();
    bench.guest.start_fails.store(true, Ordering::Relaxed);
    assert_eq!(code(bench.start("web", "e1").await), Code::INVALID_ARGUMENT);
    assert!(!bench.guest.called("kill web/e1"), "the guest knows that it does not run");
    bench.delete("web", "e1").await.unwrap();

    bench.exec_with_stdin("web", "e2", &bench.fifo("stdin2")).await.unwrap();
    bench.guest.start_fails.store(false, Ordering::Relaxed);
    bench.guest.streams_fail.store(true, Ordering::Relaxed);
    assert_eq!(code(bench.start("web", "e2").await), Code::UNAVAILABLE);
    assert!(bench.guest.called("kill web/e2"), "it does not go on without its streams");
    bench.delete("web", "e2").await.unwrap();
    assert_eq!(bench.events(2).await, ["exec-added", "exec-added"]);
    // Time for the wrong event to come.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(bench.no_event());
}
