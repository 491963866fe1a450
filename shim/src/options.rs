//! Runtime options: what `[…runtimes.bulkhead.options]` or `ctr --runtime-config-path` says, as containerd
//! hands it to the shim. They choose the configuration file, nothing else.

use bulkhead_config::{Config, ConfigError};
use containerd_shim_protos::protobuf::{self, CodedInputStream, well_known_types::any::Any};
use std::path::{Path, PathBuf};

/// The only type of options that is understood (containerd's `pkg/runtimeoptions/v1`).
const TYPE: &str = "runtimeoptions.v1.Options";

/// What errors about an inline configuration name instead of a file.
const INLINE: &str = "runtime options";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeOptions {
    /// Configuration file, instead of the default one.
    pub config_path: Option<PathBuf>,
    /// The options' TOML itself, used when no path is given.
    pub config_body: String,
}

#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    #[error("runtime options of type {0:?} are not understood: expected {TYPE}")]
    Type(String),
    #[error("runtime options are malformed")]
    Malformed(#[source] protobuf::Error),
}

impl RuntimeOptions {
    /// Parses an `Any`; an empty one means that nothing was set.
    pub fn from_any(any: &Any) -> Result<Self, OptionsError> {
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        match name {
            "" => Ok(Self::default()),
            TYPE => Self::decode(&any.value).map_err(OptionsError::Malformed),
            other => Err(OptionsError::Type(other.chars().take(128).collect())),
        }
    }

    fn decode(bytes: &[u8]) -> protobuf::Result<Self> {
        let mut options = Self::default();
        let mut input = CodedInputStream::from_bytes(bytes);
        while let Some(tag) = input.read_raw_tag_or_eof()? {
            // Field number and wire type: config_path is 2, config_body is 3, both length-delimited.
            match tag {
                0x12 => {
                    options.config_path = Some(input.read_string()?).filter(|path| !path.is_empty()).map(Into::into)
                }
                0x1a => options.config_body = input.read_string()?,
                _ => protobuf::rt::skip_field_for_tag(tag, &mut input)?,
            }
        }
        Ok(options)
    }

    /// The configuration that they choose.
    pub fn config(&self) -> Result<Config, ConfigError> {
        match &self.config_path {
            None if !self.config_body.trim().is_empty() => Config::parse(&self.config_body, Path::new(INLINE)),
            path => Config::load(path.as_deref()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, value: &[u8]) -> Any {
        Any { type_url: type_url.into(), value: value.into(), ..Default::default() }
    }

    #[test]
    fn the_configuration_path_is_found() {
        let options = RuntimeOptions::from_any(&any(TYPE, b"\x0a\x01t\x12\x07/c.toml")).unwrap();
        assert_eq!(options, RuntimeOptions { config_path: Some("/c.toml".into()), config_body: String::new() });
    }

    #[test]
    fn an_inline_configuration_is_used_without_a_path() {
        let options = RuntimeOptions::from_any(&any(TYPE, b"\x1a\x09vcpus = 2")).unwrap();
        assert_eq!(options.config().unwrap().vcpus, 2);
        let wrong = RuntimeOptions { config_path: None, config_body: "cpus = 2".into() };
        assert_eq!(wrong.config().unwrap_err().to_string(), "runtime options has the unknown key \"cpus\"");
    }

    #[test]
    fn no_options_mean_none() {
        assert_eq!(RuntimeOptions::from_any(&any("", b"")).unwrap(), RuntimeOptions::default());
    }

    #[test]
    fn options_of_another_runtime_are_refused() {
        let error = RuntimeOptions::from_any(&any("types/containerd.runc.v1.Options", b"")).unwrap_err();
        assert!(error.to_string().contains("containerd.runc.v1.Options"));
        assert!(RuntimeOptions::from_any(&any(TYPE, b"\x12\xff")).is_err());
    }
}
