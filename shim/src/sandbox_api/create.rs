//! `CreateSandbox`: checks what the pod asks for. Nothing of it exists before the start.

use super::config::PodConfig;
use super::files;
use super::life::{Life, Prepared};
use super::{PodSandbox, api};
use crate::error::TaskError;
use crate::identifier::Identifier;
use crate::options::RuntimeOptions;
use crate::sandbox::{self, SandboxSpec};
use std::path::Path;

/// What a pod without a name server configuration of its own uses.
const NODES_RESOLV_CONF: &str = "/etc/resolv.conf";

pub(super) fn create(
    sandbox: &PodSandbox,
    request: &api::CreateSandboxRequest,
) -> Result<api::CreateSandboxResponse, TaskError> {
    let id: Identifier = request.sandbox_id.parse()?;
    if id != sandbox.pod.id {
        return Err(TaskError::Invalid(format!("this shim is that of pod sandbox {}, not of {id}", sandbox.pod.id)));
    }
    if !request.rootfs.is_empty() {
        return Err(TaskError::Invalid("a pod sandbox runs nothing and cannot have a root filesystem".to_owned()));
    }
    let prepared = prepare(sandbox, &id, request)?;
    let mut created = false;
    sandbox.life.send_if_modified(|life| {
        created = matches!(life, Life::Absent);
        if created {
            *life = Life::Created(Box::new(prepared));
        }
        created
    });
    if !created {
        return Err(TaskError::SandboxExists(id));
    }
    sandbox.pod.is_sandbox_of_its_own();
    Ok(api::CreateSandboxResponse::new())
}

fn prepare(sandbox: &PodSandbox, id: &Identifier, request: &api::CreateSandboxRequest) -> Result<Prepared, TaskError> {
    let pod = PodConfig::parse(&request.options)?;
    let spec = pod.spec(id, &request.netns_path);
    sandbox::check_pod(&spec)?;
    let config = RuntimeOptions::from_any(&sandbox.options)?.config()?;
    let files = files::of_pod(&pod, &spec.hostname, Path::new(NODES_RESOLV_CONF))?;
    let spec = SandboxSpec::from_oci(&sandbox.pod.namespace, id, &spec)?.with_files(files);
    Ok(Prepared { spec, config })
}
