//! `Exec`: adds a process to a container. It runs when it is started.

use super::pod::Pod;
use crate::error::TaskError;
use crate::identifier::Identifier;
use crate::sandbox::guest_process;
use crate::sandbox::oci::Process;
use crate::stdio::Stdio;
use agent_protocol::agent::CreateProcessRequest;
use containerd_shim_protos::api::ExecProcessRequest;
use containerd_shim_protos::events::task::TaskExecAdded;
use containerd_shim_protos::topics::TASK_EXEC_ADDED_EVENT_TOPIC;
use containerd_shim_protos::types::empty::Empty;
use std::sync::Arc;

pub async fn exec(pod: Arc<Pod>, request: ExecProcessRequest) -> Result<Empty, TaskError> {
    let container = pod.container(&request.id)?;
    let exec: Identifier = request.exec_id.parse()?;
    container.in_use()?;
    let stdio =
        Stdio { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, terminal: request.terminal };
    let create = CreateProcessRequest {
        container_id: container.id.to_string(),
        exec_id: exec.to_string(),
        process: added_process(&request.spec.value)?,
        streams: Some(stdio.streams()).into(),
        ..Default::default()
    };
    let vm = pod.vm()?;
    container.add(&exec, stdio)?;
    if let Err(error) = vm.agent().create_process(&create).await {
        container.remove(&exec);
        return Err(error.into());
    }
    let event =
        TaskExecAdded { container_id: container.id.to_string(), exec_id: exec.to_string(), ..Default::default() };
    pod.events.publish(TASK_EXEC_ADDED_EVENT_TOPIC, &event);
    Ok(Empty::new())
}

/// The OCI process as the guest is to see it.
fn added_process(json: &[u8]) -> Result<Vec<u8>, TaskError> {
    let invalid = |error: serde_json::Error| TaskError::Invalid(format!("not an OCI process: {error}"));
    let process: Process = serde_json::from_slice(json).map_err(invalid)?;
    if process.args.is_empty() {
        return Err(TaskError::Invalid("the added process has no command: args is empty".to_owned()));
    }
    serde_json::to_vec(&guest_process(process)?).map_err(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_the_node_stay_there_and_the_rest_passes() {
        let json = br#"{"args":["sh"],"cwd":"/","apparmorProfile":"unconfined","noNewPrivileges":true}"#;
        let process: serde_json::Value = serde_json::from_slice(&added_process(json).unwrap()).unwrap();
        let expected = serde_json::json!({"args": ["sh"], "cwd": "/", "noNewPrivileges": true, "terminal": false});
        assert_eq!(process, expected);
    }

    #[test]
    fn an_added_process_is_refused_a_profile_like_the_first() {
        let error = added_process(br#"{"args":["sh"],"apparmorProfile":"mine"}"#).unwrap_err();
        assert!(error.to_string().starts_with("AppArmor profile \"mine\""), "{error}");
    }

    #[test]
    fn a_process_without_a_command_is_refused() {
        let error = added_process(br#"{"args":[],"cwd":"/"}"#).unwrap_err();
        assert_eq!(error.to_string(), "the added process has no command: args is empty");
        assert!(added_process(b"[").unwrap_err().to_string().starts_with("not an OCI process: "));
    }
}
