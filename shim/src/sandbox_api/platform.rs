//! `Platform`: what containerd makes the containers' specifications for.

use super::{PodSandbox, api};
use crate::error::TaskError;
use containerd_shim_protos::types::platform::Platform;

/// As Go names them.
const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

pub(super) fn platform(
    sandbox: &PodSandbox,
    request: &api::PlatformRequest,
) -> Result<api::PlatformResponse, TaskError> {
    sandbox.named(&request.sandbox_id)?;
    let platform = Platform { os: "linux".to_owned(), architecture: ARCHITECTURE.to_owned(), ..Default::default() };
    Ok(api::PlatformResponse { platform: Some(platform).into(), ..Default::default() })
}
