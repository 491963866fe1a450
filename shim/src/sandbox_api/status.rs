//! `SandboxStatus`: what the sandbox is now, from the shim's memory alone.

use super::life::Life;
use super::{PodSandbox, api};
use crate::clock;
use crate::error::TaskError;

/// The only words that containerd knows.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

pub(super) fn status(
    sandbox: &PodSandbox,
    request: &api::SandboxStatusRequest,
) -> Result<api::SandboxStatusResponse, TaskError> {
    sandbox.named(&request.sandbox_id)?;
    let life = sandbox.life.borrow().clone();
    let ready = matches!(life, Life::Ready(_));
    let info = if request.verbose {
        [("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned())].into()
    } else {
        Default::default()
    };
    Ok(api::SandboxStatusResponse {
        sandbox_id: sandbox.pod.id.to_string(),
        pid: life.booted().filter(|_| ready).map_or(0, |booted| booted.pid),
        state: if ready { READY } else { NOT_READY }.to_owned(),
        info,
        created_at: life.booted().map(|booted| clock::timestamp(booted.at)).into(),
        exited_at: life.exit().map(|exit| clock::timestamp(exit.at)).into(),
        ..Default::default()
    })
}
