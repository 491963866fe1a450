//! The bundle directory that containerd prepares for each container: `config.json` and what it says about pods.

use crate::identifier::{Identifier, InvalidIdentifier};
use crate::sandbox::oci::Spec;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Longest `config.json` that is read, in bytes.
const MAX_SPEC: u64 = 4 * 1024 * 1024;

const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

/// What a container is to its pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Not part of a Kubernetes pod: a microVM of its own.
    Alone,
    /// Stands for the pod itself. Its process is never run.
    Sandbox,
    /// Runs in the microVM of the pod `sandbox`.
    Member { sandbox: Identifier },
}

#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is longer than {MAX_SPEC} bytes")]
    TooLong { path: PathBuf },
    #[error("{path} is not an OCI runtime specification")]
    Malformed { path: PathBuf, source: serde_json::Error },
    #[error("annotation {SANDBOX_ID}")]
    SandboxId(#[source] InvalidIdentifier),
    #[error("annotation {SANDBOX_ID} is missing beside {CONTAINER_TYPE}=container")]
    NoSandboxId,
    #[error("annotation {CONTAINER_TYPE}={0:?} is neither sandbox nor container")]
    ContainerType(String),
}

/// Reads `config.json`. There is none when containerd 2.x uses the shim as a sandbox controller.
pub fn read_spec(bundle: &Path) -> Result<Option<Spec>, BundleError> {
    let path = bundle.join("config.json");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(BundleError::Read { path, source }),
    };
    let mut text = Vec::new();
    if let Err(source) = file.take(MAX_SPEC + 1).read_to_end(&mut text) {
        return Err(BundleError::Read { path, source });
    }
    if text.len() as u64 > MAX_SPEC {
        return Err(BundleError::TooLong { path });
    }
    serde_json::from_slice(&text).map(Some).map_err(|source| BundleError::Malformed { path, source })
}

/// Reads the annotations with which CRI groups containers into pods.
pub fn role(spec: &Spec) -> Result<Role, BundleError> {
    let annotation = |name| spec.annotations.get(name).map(String::as_str);
    match annotation(CONTAINER_TYPE) {
        None => Ok(Role::Alone),
        Some("sandbox") => Ok(Role::Sandbox),
        Some("container") => {
            let sandbox = annotation(SANDBOX_ID).ok_or(BundleError::NoSandboxId)?;
            Ok(Role::Member { sandbox: sandbox.parse().map_err(BundleError::SandboxId)? })
        }
        Some(other) => Err(BundleError::ContainerType(other.chars().take(64).collect())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role_of(annotations: &str) -> Result<Role, String> {
        let spec = serde_json::from_str(&format!(r#"{{"ociVersion":"1.1.0","annotations":{annotations}}}"#)).unwrap();
        role(&spec).map_err(|error| crate::log::with_causes(&error))
    }

    #[test]
    fn annotations_decide_the_role() {
        assert_eq!(role_of("{}"), Ok(Role::Alone));
        assert_eq!(role_of(r#"{"io.kubernetes.cri.container-type":"sandbox"}"#), Ok(Role::Sandbox));
        let member = r#"{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"p1"}"#;
        assert_eq!(role_of(member), Ok(Role::Member { sandbox: "p1".parse().unwrap() }));
    }

    #[test]
    fn annotations_that_make_no_sense_are_named() {
        assert_eq!(
            role_of(r#"{"io.kubernetes.cri.container-type":"pod"}"#).unwrap_err(),
            r#"annotation io.kubernetes.cri.container-type="pod" is neither sandbox nor container"#
        );
        let escape = r#"{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"../p"}"#;
        assert_eq!(
            role_of(escape).unwrap_err(),
            r#"annotation io.kubernetes.cri.sandbox-id: "../p" is not a valid identifier"#
        );
        assert!(role_of(r#"{"io.kubernetes.cri.container-type":"container"}"#).is_err());
    }

    #[test]
    fn a_bundle_without_config_is_a_sandbox_of_containerd_2() {
        let bundle = tempfile::tempdir().unwrap();
        assert!(read_spec(bundle.path()).unwrap().is_none());
        std::fs::write(bundle.path().join("config.json"), "{").unwrap();
        let error = read_spec(bundle.path()).unwrap_err().to_string();
        assert!(error.ends_with("config.json is not an OCI runtime specification"), "{error}");
    }
}
