//! `template`: makes the machine that the node's pods are made from. The operator's command runs this program for it, since
//! this is the one that knows how a VMM is started.

use crate::sandbox::{SandboxError, build_template, check_template, has_template};
use bulkhead_config::{Config, ConfigError};
use std::io;

#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot start the runtime: {0}")]
    Runtime(#[source] io::Error),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// Of the size that the node's configuration has for pods without limits. `if_needed`: one that fits is left as it is, and none
/// is made where the node's configuration does not want any.
pub fn build(if_needed: bool) -> Result<(), TemplateError> {
    let config = Config::load(None)?;
    if if_needed && (!config.templates || has_template(&config)?) {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(TemplateError::Runtime)?;
    let result = runtime.block_on(build_template(&config));
    runtime.shutdown_background();
    Ok(result?)
}

/// A sentence for the operator, or what is wrong with the template.
pub fn check() -> Result<String, TemplateError> {
    let config = Config::load(None)?;
    if !config.templates {
        return Ok("switched off, so that pods boot".to_owned());
    }
    Ok(check_template(&config)?)
}
