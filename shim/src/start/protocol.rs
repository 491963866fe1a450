//! What containerd sends on standard input of `start`, and the shapes of the answer.
//!
//! | containerd | input            | answer                                   | for a pod sandbox that is no container |
//! |------------|------------------|------------------------------------------|----------------------------------------|
//! | 1.7        | options          | plain address; version 3 is a hard error | not supported                          |
//! | 2.0 – 2.2  | options          | plain address                            | JSON, version 3                        |
//! | 2.3        | bootstrap params | bootstrap result                         | bootstrap result                       |
//!
//! A plain address means version 2 of the task service everywhere, so it is the answer to everyone who did not
//! show that they know more. Who makes a pod sandbox that is no container does: its members need version 3.

use crate::identifier::Identifier;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::{self, Message, well_known_types::any::Any};
use std::path::PathBuf;

/// Parsed standard input.
#[derive(Debug)]
pub struct Input {
    pub options: Any,
    /// Where containerd wants sockets, if it says.
    pub socket_directory: Option<PathBuf>,
    /// Whether containerd sent bootstrap params.
    pub bootstrap: bool,
}

impl Input {
    /// Tells bootstrap params from options: only the former repeat the id that is on the command line. Read as
    /// bootstrap params, options would have their type's name there.
    pub fn parse(bytes: &[u8], id: &Identifier) -> protobuf::Result<Self> {
        if let Ok(params) = BootstrapParams::parse_from_bytes(bytes)
            && params.instance_id == id.as_str()
        {
            let values = params.extensions.into_iter().filter_map(|extension| extension.value.into_option());
            let options = values.into_iter().find(|any| any.type_url.contains("runtimeoptions"));
            return Ok(Self {
                options: options.unwrap_or_default(),
                socket_directory: params.socket_dir.filter(|path| path.starts_with('/')).map(Into::into),
                bootstrap: true,
            });
        }
        Ok(Self { options: Any::parse_from_bytes(bytes)?, socket_directory: None, bootstrap: false })
    }
}

/// The shape of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    Address,
    Json,
    Bootstrap,
}

impl Input {
    /// `is_container`: whether what is started has a specification.
    pub fn reply(&self, is_container: bool) -> Reply {
        match (self.bootstrap, is_container) {
            (true, _) => Reply::Bootstrap,
            (false, true) => Reply::Address,
            (false, false) => Reply::Json,
        }
    }
}

impl Reply {
    pub fn encode(self, url: &str) -> Vec<u8> {
        match self {
            Self::Address => url.as_bytes().to_vec(),
            Self::Json => {
                let reply = serde_json::json!({"version": 3, "address": url, "protocol": "ttrpc"});
                reply.to_string().into_bytes()
            }
            Self::Bootstrap => {
                let result = BootstrapResult {
                    version: 3,
                    address: url.to_owned(),
                    protocol: "ttrpc".to_owned(),
                    ..Default::default()
                };
                result.write_to_bytes().expect("a message of three small fields")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> Identifier {
        "web".parse().unwrap()
    }

    fn options() -> Any {
        Any { type_url: "runtimeoptions.v1.Options".into(), value: b"\x12\x02/c".into(), ..Default::default() }
    }

    #[test]
    fn options_are_not_taken_for_bootstrap_params() {
        let input = Input::parse(&options().write_to_bytes().unwrap(), &id()).unwrap();
        assert!(!input.bootstrap);
        assert_eq!(input.options, options());
    }

    #[test]
    fn no_input_means_no_options() {
        let input = Input::parse(b"", &id()).unwrap();
        assert!(!input.bootstrap && input.options == Any::default());
    }

    #[test]
    fn bootstrap_params_carry_options_and_socket_directory() {
        let mut params = BootstrapParams { instance_id: "web".into(), ..Default::default() };
        params.socket_dir = Some("/run/x".into());
        let extension =
            containerd_shim_protos::bootstrap_api::Extension { value: Some(options()).into(), ..Default::default() };
        params.extensions.push(extension);
        let input = Input::parse(&params.write_to_bytes().unwrap(), &id()).unwrap();
        assert!(input.bootstrap);
        assert_eq!(input.options, options());
        assert_eq!(input.socket_directory, Some("/run/x".into()));
    }

    #[test]
    fn version_3_is_answered_only_to_those_who_know_it() {
        let input = |bootstrap| Input { options: Any::default(), socket_directory: None, bootstrap };
        assert_eq!(input(false).reply(true), Reply::Address);
        assert_eq!(input(false).reply(false), Reply::Json);
        assert_eq!(input(true).reply(true), Reply::Bootstrap);
        assert_eq!(input(true).reply(false), Reply::Bootstrap);
        assert_eq!(Reply::Json.encode("unix:///s"), br#"{"address":"unix:///s","protocol":"ttrpc","version":3}"#);
        assert_eq!(Reply::Address.encode("unix:///s"), b"unix:///s");
        let result = BootstrapResult::parse_from_bytes(&Reply::Bootstrap.encode("unix:///s")).unwrap();
        assert_eq!((result.version, result.address.as_str(), result.protocol.as_str()), (3, "unix:///s", "ttrpc"));
    }
}
