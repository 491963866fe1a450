//! `Create`: makes a container, and the microVM when the container owns one. It does not run yet.

use super::container::Container;
use super::exit;
use super::pod::Pod;
use super::vm::MicroVm;
use crate::bundle::{self, Role};
use crate::error::TaskError;
use crate::identifier::Identifier;
use crate::options::RuntimeOptions;
use crate::sandbox::oci::Spec;
use crate::sandbox::{self, AgentError, ContainerPlan, Mount, SandboxError, SandboxSpec, SharedPod};
use crate::stdio::{Opened, Stdio};
use crate::trace;
use agent_protocol::agent::CreateContainerRequest;
use agent_protocol::stream::{Channel, Hello};
use containerd_shim_protos::api::{CreateTaskRequest, CreateTaskResponse};
use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::topics::TASK_CREATE_EVENT_TOPIC;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// The shim learns of a microVM's end a moment after its connections broke.
const END_NOTICED: Duration = Duration::from_secs(1);

pub async fn create(pod: Arc<Pod>, request: CreateTaskRequest) -> Result<CreateTaskResponse, TaskError> {
    if !request.checkpoint.is_empty() {
        return Err(TaskError::Unsupported("starting from a checkpoint"));
    }
    let id: Identifier = request.id.parse()?;
    let reservation = pod.reserve(&id)?;
    let bundle = PathBuf::from(&request.bundle);
    let Some(spec) = bundle::read_spec(&bundle)? else {
        return Err(TaskError::Invalid(format!("{} has no config.json", bundle.display())));
    };
    let role = bundle::role(&spec)?;
    let stdio = check(&pod, &id, &spec, &role, &request)?;
    let plan = match &role {
        Role::Sandbox => None,
        Role::Alone => Some(plan(&id, &spec, &bundle, None, &request)?),
        Role::Member { .. } => Some(plan(&id, &spec, &bundle, Some(&pod.shared()), &request)?),
    };
    let opened = stdio.open(&pod.namespace, &id)?;

    let creating = trace::container_span(id.as_str(), "create");
    let vm = match &role {
        Role::Member { .. } => pod.vm()?,
        Role::Alone | Role::Sandbox => boot(&pod, &id, &spec, &request.options).await?,
    };
    let container = Arc::new(Container::new(id, bundle, vm.vmm_pid(), &role, stdio, sandbox::oom_score(&spec))?);
    if let Some(plan) = plan
        && let Err(error) = make(&*vm, &container, &plan, opened).await
    {
        let error = explain(&*vm, error).await;
        undo(&pod, &*vm, &container).await;
        return Err(error);
    }
    if let Err(_reservation) = reservation.fill(container.clone()) {
        undo(&pod, &*vm, &container).await;
        return Err(TaskError::GivenUp(container.id.clone()));
    }
    drop(creating);
    trace::save();
    pod.events.publish(TASK_CREATE_EVENT_TOPIC, &event(&request, container.pid));
    exit::watch(&pod, &vm, &container, &container.init);
    tracing::info!(container = %container.id, vmm = container.pid, "container created");
    Ok(CreateTaskResponse { pid: container.pid, ..Default::default() })
}

/// Refuses what can be refused before anything is made.
fn check(
    pod: &Pod,
    id: &Identifier,
    spec: &Spec,
    role: &Role,
    request: &CreateTaskRequest,
) -> Result<Stdio, TaskError> {
    sandbox::check_annotations(spec)?;
    match role {
        // What its process would do is done by the microVM.
        Role::Sandbox => {
            sandbox::check_pod(spec)?;
            return Ok(Stdio::default());
        }
        Role::Member { sandbox } if *sandbox != pod.id => {
            return Err(TaskError::Invalid(format!("container {id} belongs to pod {sandbox}, not to {}", pod.id)));
        }
        Role::Alone | Role::Member { .. } => {}
    }
    if spec.process.as_ref().is_none_or(|process| process.args.is_empty()) {
        return Err(TaskError::Invalid(format!("container {id} has no command: process.args is empty")));
    }
    Ok(Stdio {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
    })
}

fn plan(
    id: &Identifier,
    spec: &Spec,
    bundle: &Path,
    pod: Option<&SharedPod>,
    request: &CreateTaskRequest,
) -> Result<ContainerPlan, SandboxError> {
    let mount = |mount: &containerd_shim_protos::types::mount::Mount| Mount {
        kind: mount.type_.clone(),
        source: PathBuf::from(&mount.source),
        options: mount.options.clone(),
    };
    let rootfs: Vec<_> = request.rootfs.iter().map(mount).collect();
    Ok(ContainerPlan::new(&sandbox::Container { id, spec, pod, rootfs: &rootfs, bundle })?)
}

async fn boot(pod: &Arc<Pod>, id: &Identifier, spec: &Spec, options: &Any) -> Result<Arc<dyn MicroVm>, TaskError> {
    if *id != pod.id {
        return Err(TaskError::Invalid(format!("container {id} needs a microVM of its own, not that of {}", pod.id)));
    }
    if pod.vm().is_ok() {
        return Err(TaskError::Invalid(format!("pod {id} has its microVM already")));
    }
    let config = RuntimeOptions::from_any(options)?.config()?;
    let spec = SandboxSpec::from_oci(&pod.namespace, id, spec)?;
    Ok(pod.boot(spec, &config).await?)
}

/// Makes the container in the guest and connects its streams.
async fn make(vm: &dyn MicroVm, container: &Container, plan: &ContainerPlan, opened: Opened) -> Result<(), TaskError> {
    let name = container.id.as_str();
    let attaching = trace::container_span(name, "attach");
    let attached = vm.attach(plan).await?;
    drop(attaching);
    let create = CreateContainerRequest {
        container_id: container.id.to_string(),
        spec: attached.spec,
        streams: Some(container.init.stdio.streams()).into(),
        rootfs: Some(attached.rootfs),
        pid_namespace: attached.pids,
        devices: attached.devices,
        ..Default::default()
    };
    let creating = trace::container_span(name, "create in the guest");
    let created = vm.agent().create_container(&create).await?;
    if trace::is_on() {
        trace::guest(&created.moments, creating.start()..trace::now(), Some(name));
    }
    drop(creating);
    let _connecting = trace::container_span(name, "streams");
    let hello = Hello { container_id: container.id.to_string(), exec_id: String::new(), channel: Channel::Stdout };
    let copies = opened.connect(&hello, |hello| async move { vm.open_stream(&hello).await }).await?;
    container.init.set_copies(copies);
    Ok(())
}

/// A broken connection's error, replaced by the microVM's end if that is what broke it.
pub(super) async fn explain(vm: &dyn MicroVm, error: TaskError) -> TaskError {
    if !matches!(
        error,
        TaskError::Agent(AgentError::Broken { .. })
            | TaskError::Sandbox(SandboxError::Agent(AgentError::Broken { .. }))
    ) {
        return error;
    }
    let mut stopped = vm.stopped();
    match timeout(END_NOTICED, stopped.wait_for(Option::is_some)).await {
        Ok(Ok(reason)) => reason.clone().map_or(error, |reason| SandboxError::Gone(reason).into()),
        _ => error,
    }
}

/// Takes back what a failed creation made.
async fn undo(pod: &Pod, vm: &dyn MicroVm, container: &Container) {
    if container.owns_vm {
        pod.destroy_vm().await;
        return;
    }
    // Most failures come before there is anything to delete.
    let _ = vm.agent().delete(&container.init.request()).await;
    if let Err(error) = vm.detach(&container.id).await {
        tracing::warn!(container = %container.id, %error, "container is not detached");
    }
}

fn event(request: &CreateTaskRequest, pid: u32) -> TaskCreate {
    let io = TaskIO {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
        ..Default::default()
    };
    TaskCreate {
        container_id: request.id.clone(),
        bundle: request.bundle.clone(),
        rootfs: request.rootfs.clone(),
        io: Some(io).into(),
        pid,
        ..Default::default()
    }
}
