use super::{api, services};
use crate::task::tests::harness::{Bench, code, serve, soon};
use containerd_shim_protos::protobuf::{Message, well_known_types::any::Any};
use containerd_shim_protos::sandbox_async::SandboxClient;
use containerd_shim_protos::shim_async::Client;
use containerd_shim_protos::types::mount::Mount;
use cri_protocol::{
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
};
use std::time::Duration;
use ttrpc::Code;
use ttrpc::r#async::Server;

/// A pod with the id `web`, as containerd makes it through the sandbox service.
struct Api {
    bench: Bench,
    client: SandboxClient,
    _server: Server,
}

const MEMBER: &str = r#"{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"web"}"#;

macro_rules! call {
    ($api:expr, $verb:ident, $request:ident) => {
        $api.client.$verb(soon(), &api::$request { sandbox_id: "web".to_owned(), ..Default::default() }).await
    };
}

impl Api {
    async fn new() -> Self {
        let bench = Bench::new().await;
        let socket = bench.directory.path().join("sandbox");
        let server = serve(&socket, services(&bench.pod, Any::default())).await;
        let client = Client::connect(&format!("unix://{}", socket.display())).await.unwrap();
        Self { bench, client: SandboxClient::new(client), _server: server }
    }

    async fn started() -> Self {
        let api = Self::new().await;
        call!(api, create_sandbox, CreateSandboxRequest).unwrap();
        let answer = call!(api, start_sandbox, StartSandboxRequest).unwrap();
        assert_eq!(answer.pid, 4242);
        api
    }

    async fn run_member(&self, id: &str) {
        self.bench.create(id, MEMBER).await.unwrap();
        self.bench.start(id, "").await.unwrap();
    }

    async fn state(&self) -> String {
        call!(self, sandbox_status, SandboxStatusRequest).unwrap().state
    }
}

#[tokio::test]
async fn a_sandbox_lives_from_create_to_shutdown() {
    let api = Api::new().await;
    assert_eq!(code(call!(api, sandbox_status, SandboxStatusRequest)), Code::NOT_FOUND);
    call!(api, create_sandbox, CreateSandboxRequest).unwrap();
    assert_eq!(api.state().await, "SANDBOX_NOTREADY");
    call!(api, start_sandbox, StartSandboxRequest).unwrap();
    assert_eq!(api.state().await, "SANDBOX_READY");
    assert_eq!(call!(api, platform, PlatformRequest).unwrap().platform.os, "linux");
    call!(api, ping_sandbox, PingRequest).unwrap();
    api.run_member("one").await;

    call!(api, stop_sandbox, StopSandboxRequest).unwrap();
    assert_eq!(api.bench.wait("one", "").await, 137);
    assert_eq!(call!(api, wait_sandbox, WaitSandboxRequest).unwrap().exit_status, 137);
    assert_eq!(api.state().await, "SANDBOX_NOTREADY");
    call!(api, stop_sandbox, StopSandboxRequest).unwrap();
    api.bench.delete("one", "").await.unwrap();
    assert!(!api.bench.is_over().await);

    call!(api, shutdown_sandbox, ShutdownSandboxRequest).unwrap();
    assert!(api.bench.is_over().await);
}

#[tokio::test]
async fn members_come_and_go_in_a_sandbox_that_stays() {
    let api = Api::started().await;
    for _ in 0..3 {
        api.run_member("one").await;
        api.bench.kill("one", "", 9).await.unwrap();
        assert_eq!(api.bench.wait("one", "").await, 137);
        api.bench.delete("one", "").await.unwrap();
        // containerd asks for it after a restart.
        api.bench.shut_down().await;
    }
    assert!(!api.bench.is_over().await);
    assert_eq!(api.state().await, "SANDBOX_READY");
}

#[tokio::test]
async fn a_lost_microvm_is_told_to_those_who_wait() {
    let api = Api::started().await;
    api.run_member("one").await;
    let client = api.client.clone();
    let waiting = tokio::spawn(async move {
        let request = api::WaitSandboxRequest { sandbox_id: "web".to_owned(), ..Default::default() };
        client.wait_sandbox(soon(), &request).await
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!waiting.is_finished());
    api.bench.guest.lose_vm();
    assert_eq!(waiting.await.unwrap().unwrap().exit_status, 137);
    assert_eq!(api.bench.wait("one", "").await, 137);
    assert_eq!(api.state().await, "SANDBOX_NOTREADY");
}

#[tokio::test]
async fn calls_out_of_order_are_refused() {
    let api = Api::started().await;
    assert_eq!(code(call!(api, create_sandbox, CreateSandboxRequest)), Code::ALREADY_EXISTS);
    assert_eq!(code(call!(api, start_sandbox, StartSandboxRequest)), Code::FAILED_PRECONDITION);
    let other = api::StopSandboxRequest { sandbox_id: "other".to_owned(), ..Default::default() };
    assert_eq!(code(api.client.stop_sandbox(soon(), &other).await), Code::NOT_FOUND);
    assert_eq!(code(call!(api, sandbox_metrics, SandboxMetricsRequest)), Code::UNIMPLEMENTED);
    assert_eq!(code(api.bench.create("web", "{}").await), Code::INVALID_ARGUMENT, "it would need a second microVM");
}

#[tokio::test]
async fn a_root_filesystem_for_the_sandbox_itself_is_refused() {
    let api = Api::new().await;
    let rootfs = vec![Mount { type_: "overlay".to_owned(), ..Default::default() }];
    let request = api::CreateSandboxRequest { sandbox_id: "web".to_owned(), rootfs, ..Default::default() };
    let error = api.client.create_sandbox(soon(), &request).await.unwrap_err().to_string();
    assert!(error.contains("cannot have a root filesystem"), "{error}");
    call!(api, create_sandbox, CreateSandboxRequest).unwrap();
}

#[tokio::test]
async fn a_pod_that_cannot_be_had_leaves_a_shim_that_can_be_shut_down() {
    let api = Api::new().await;
    let options = NamespaceOption { network: NamespaceMode::NODE.into(), ..Default::default() };
    let security_context =
        LinuxSandboxSecurityContext { namespace_options: Some(options).into(), ..Default::default() };
    let linux = LinuxPodSandboxConfig { security_context: Some(security_context).into(), ..Default::default() };
    let config = PodSandboxConfig { linux: Some(linux).into(), ..Default::default() };
    let options = Any {
        type_url: "runtime.v1.PodSandboxConfig".to_owned(),
        value: config.write_to_bytes().unwrap(),
        ..Default::default()
    };
    let request =
        api::CreateSandboxRequest { sandbox_id: "web".to_owned(), options: Some(options).into(), ..Default::default() };
    let error = api.client.create_sandbox(soon(), &request).await.unwrap_err().to_string();
    assert!(error.contains("a microVM cannot share the node's network"), "{error}");
    call!(api, shutdown_sandbox, ShutdownSandboxRequest).unwrap();
    assert!(api.bench.is_over().await);
}
