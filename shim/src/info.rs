//! `-info` and `-v`: what this runtime is.

use containerd_shim_protos::protobuf::{self, Message, well_known_types::any::Any};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};

/// The runtime type that users write.
pub const RUNTIME: &str = "io.containerd.bulkhead.v2";

/// How containerd names the JSON document of OCI runtime features.
const FEATURES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// What a mount may be asked to be. Left out are propagation to the node and id mapping, which are refused.
const MOUNT_OPTIONS: &[&str] = &[
    "async",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "lazytime",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "norelatime",
    "nosuid",
    "private",
    "rbind",
    "relatime",
    "remount",
    "rnodev",
    "rnoexec",
    "rnosuid",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rslave",
    "runbindable",
    "rw",
    "slave",
    "strictatime",
    "suid",
    "sync",
    "unbindable",
];

/// Where containerd 2.2 and later look for the mounts that they are to leave to the shim.
const MOUNTS_KEY: &str = "containerd.io/runtime-allow-mounts";

/// Layers of images, and what is to be made of them: `sandbox::RootfsPlan` reads it. Not `mkfs`: containerd makes the files.
const MOUNTS: &str = "mkdir/*,format/*,erofs";

/// The text of `-v`.
pub fn version() -> String {
    format!("{}:\n  Version:  {}\n", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
}

/// The protobuf message of `-info`; `input` is the runtime options, which are echoed.
pub fn info(input: &[u8]) -> protobuf::Result<Vec<u8>> {
    let features = serde_json::json!({
        "mountOptions": MOUNT_OPTIONS,
        "ociVersionMin": "1.0.0",
        // That of the guest's crun. containerd writes newer ones, and what crun does not know of them is refused by its name.
        "ociVersionMax": "1.1.0",
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
            "cgroup": { "v1": false, "v2": true, "systemd": false },
            "seccomp": { "enabled": true },
            "apparmor": { "enabled": false },
            "selinux": { "enabled": false },
        },
    });
    RuntimeInfo {
        name: RUNTIME.to_owned(),
        version: Some(RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), ..Default::default() }).into(),
        options: Some(Any::parse_from_bytes(input)?).into(),
        features: Some(Any {
            type_url: FEATURES_TYPE.to_owned(),
            value: features.to_string().into_bytes(),
            ..Default::default()
        })
        .into(),
        annotations: [(MOUNTS_KEY.to_owned(), MOUNTS.to_owned())].into(),
        ..Default::default()
    }
    .write_to_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_names_the_runtime_and_its_features() {
        let info = RuntimeInfo::parse_from_bytes(&info(b"").unwrap()).unwrap();
        assert_eq!(info.name, "io.containerd.bulkhead.v2");
        assert_eq!(info.version.version, env!("CARGO_PKG_VERSION"));
        let features: serde_json::Value = serde_json::from_slice(&info.features.value).unwrap();
        assert_eq!(features["linux"]["cgroup"]["v2"], true);
        assert_eq!(info.annotations["containerd.io/runtime-allow-mounts"], "mkdir/*,format/*,erofs");
    }

    #[test]
    fn read_only_may_be_asked_for_all_below_and_what_is_refused_is_not_offered() {
        for option in ["rro", "rprivate", "rslave"] {
            assert!(MOUNT_OPTIONS.contains(&option), "{option}");
        }
        for option in ["shared", "rshared", "idmap", "ridmap"] {
            assert!(!MOUNT_OPTIONS.contains(&option), "{option}");
        }
    }
}
