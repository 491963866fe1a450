//! Identity, time, entropy and kernel settings: the shim's first call.

use crate::error::Error;
use crate::guest::{identity, sysctl};
use agent_protocol::VERSION;
use agent_protocol::agent::{ConfigureRequest, ConfigureResponse};

pub(super) fn configure(request: &ConfigureRequest) -> Result<ConfigureResponse, Error> {
    identity::add_entropy(&request.entropy)?;
    identity::set_clock(request.time_ns)?;
    identity::set_hostname(&request.hostname)?;
    for (name, value) in &request.sysctls {
        sysctl::set(name, value)?;
    }
    Ok(ConfigureResponse {
        version: VERSION.to_owned(),
        kernel_release: identity::kernel_release()?,
        ..Default::default()
    })
}
