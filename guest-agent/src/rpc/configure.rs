//! Identity, time, entropy, processors and kernel settings: the shim's first call.

use crate::agent::Agent;
use crate::error::Error;
use crate::guest::{identity, pod_files, processors, sysctl};
use agent_protocol::agent::{ConfigureRequest, ConfigureResponse};
use agent_protocol::{POD_FILES, VERSION};
use std::path::Path;
use std::sync::atomic::Ordering;

pub(super) fn configure(agent: &Agent, request: &ConfigureRequest) -> Result<ConfigureResponse, Error> {
    let mut moments = agent.booted.clone();
    moments.note("listening");
    identity::renew_randomness(&request.entropy)?;
    moments.note("randomness");
    identity::set_clock(request.time_ns)?;
    identity::set_hostname(&request.hostname)?;
    processors::start(Path::new(processors::DIRECTORY), request.vcpus)?;
    for (name, value) in &request.sysctls {
        sysctl::set(name, value)?;
    }
    if let Some(files) = request.files.as_ref() {
        pod_files::write(files, Path::new(POD_FILES))?;
    }
    agent.pressure.begin(request.growth_mib);
    moments.note("clock, name, settings");
    agent.configured.store(true, Ordering::Release);
    Ok(ConfigureResponse {
        version: VERSION.to_owned(),
        kernel_release: identity::kernel_release()?,
        moments: Some(moments.answer()).into(),
        ..Default::default()
    })
}
