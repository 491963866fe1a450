//! The pod's configuration, as a sandbox's OCI specification: what the podsandbox controller would have written. Pure.

use crate::error::TaskError;
use crate::identifier::Identifier;
use crate::sandbox::oci::{Linux, Namespace, Spec};
use crate::sandbox::{POD_MEMORY, POD_NAME, POD_NAMESPACE, POD_PERIOD, POD_QUOTA, POD_UID};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use cri_protocol::{NamespaceMode, PodSandboxConfig};
use protobuf::Message;
use std::collections::BTreeMap;
use std::path::Path;

const TYPE: &str = "runtime.v1.PodSandboxConfig";

/// What systemd's unit for the pod's containers is named after.
const SYSTEMD_PREFIX: &str = "cri-containerd";

/// What containerd 2 sets for every pod that does not say otherwise (`enable_unprivileged_ports`, `enable_unprivileged_icmp`):
/// low ports and ping are for every user.
const DEFAULT_SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// Annotations that are containerd's own.
const CRI_ANNOTATIONS: &str = "io.kubernetes.cri.";

#[derive(Debug)]
pub(super) struct PodConfig(pub PodSandboxConfig);

impl PodConfig {
    pub fn parse(options: &Any) -> Result<Self, TaskError> {
        match options.type_url.rsplit('/').next().unwrap_or_default() {
            // A client that is not the CRI plugin.
            "" => Ok(Self(PodSandboxConfig::default())),
            TYPE => PodSandboxConfig::parse_from_bytes(&options.value)
                .map(Self)
                .map_err(|error| TaskError::Invalid(format!("the pod sandbox's configuration is malformed: {error}"))),
            other => Err(TaskError::Invalid(format!("a pod sandbox is configured by {TYPE}, not by {other:.128}"))),
        }
    }

    pub fn spec(&self, id: &Identifier, netns: &str) -> Spec {
        let config = &self.0;
        let linux = Linux {
            cgroups_path: cgroups_path(&config.linux.cgroup_parent, id),
            namespaces: self.namespaces(netns),
            sysctl: self.sysctls(),
            ..Linux::default()
        };
        Spec {
            hostname: if config.hostname.is_empty() { id.to_string() } else { config.hostname.clone() },
            annotations: self.annotations(),
            linux: Some(linux),
            ..Spec::default()
        }
    }

    fn sysctls(&self) -> BTreeMap<String, String> {
        let defaults = DEFAULT_SYSCTLS.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let mut all = BTreeMap::from(defaults);
        all.extend(self.0.linux.sysctls.clone());
        all
    }

    /// What the CRI plugin would say of the pod is not for the pod to say.
    fn annotations(&self) -> BTreeMap<String, String> {
        let all = self.0.annotations.clone().into_iter();
        let metadata = &self.0.metadata;
        let names = [(POD_UID, &metadata.uid), (POD_NAME, &metadata.name), (POD_NAMESPACE, &metadata.namespace)];
        let names = names.into_iter().filter(|(_, name)| !name.is_empty());
        let names = names.map(|(key, name)| (key.to_owned(), name.clone()));
        all.filter(|(key, _)| !key.starts_with(CRI_ANNOTATIONS)).chain(self.limits()).chain(names).collect()
    }

    /// As the CRI plugin says it.
    fn limits(&self) -> Vec<(String, String)> {
        let Some(limits) = self.0.linux.resources.as_ref() else { return Vec::new() };
        let sums = [
            (POD_MEMORY, limits.memory_limit_in_bytes),
            (POD_QUOTA, limits.cpu_quota),
            (POD_PERIOD, limits.cpu_period),
        ];
        sums.map(|(key, sum)| (key.to_owned(), sum.to_string())).into()
    }

    /// Those of the node are not in the list.
    fn namespaces(&self, netns: &str) -> Vec<Namespace> {
        let options = &self.0.linux.security_context.namespace_options;
        let is = |mode: protobuf::EnumOrUnknown<NamespaceMode>, wanted| mode.enum_value() == Ok(wanted);
        let user_namespace = options.userns_options.as_ref().is_some_and(|user| is(user.mode, NamespaceMode::POD));
        let all = [
            ("mount", true, ""),
            ("uts", true, ""),
            ("user", user_namespace, ""),
            ("network", !is(options.network, NamespaceMode::NODE), netns),
            ("pid", !is(options.pid, NamespaceMode::NODE), ""),
            ("ipc", !is(options.ipc, NamespaceMode::NODE), ""),
        ];
        let wanted = all.into_iter().filter(|(_, wanted, _)| *wanted);
        wanted.map(|(kind, _, path)| Namespace { kind: kind.to_owned(), path: path.to_owned() }).collect()
    }
}

/// The pod's parent is a slice when systemd manages the node's cgroups, else a directory.
fn cgroups_path(parent: &str, id: &Identifier) -> String {
    let slice = Path::new(parent).file_name().and_then(|name| name.to_str()).filter(|name| name.ends_with(".slice"));
    match slice {
        Some(slice) => format!("{slice}:{SYSTEMD_PREFIX}:{id}"),
        None if parent.is_empty() => String::new(),
        None => format!("{}/{id}", parent.trim_end_matches('/')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::check_pod;
    use cri_protocol::{
        LinuxContainerResources, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceOption,
        PodSandboxMetadata, UserNamespace,
    };

    fn with(options: NamespaceOption) -> PodConfig {
        let security_context =
            LinuxSandboxSecurityContext { namespace_options: Some(options).into(), ..Default::default() };
        let linux = LinuxPodSandboxConfig { security_context: Some(security_context).into(), ..Default::default() };
        PodConfig(PodSandboxConfig { linux: Some(linux).into(), ..Default::default() })
    }

    fn id() -> Identifier {
        "p1".parse().unwrap()
    }

    #[test]
    fn a_pod_that_asks_for_nothing_is_accepted() {
        let spec = PodConfig::parse(&Any::default()).unwrap().spec(&id(), "/var/run/netns/x");
        check_pod(&spec).unwrap();
        assert_eq!(spec.hostname, "p1");
        let namespaces = spec.linux.unwrap().namespaces;
        let network = namespaces.iter().find(|namespace| namespace.kind == "network").unwrap();
        assert_eq!(network.path, "/var/run/netns/x");
    }

    #[test]
    fn namespaces_of_the_node_are_refused_in_one_sentence() {
        let node = || NamespaceMode::NODE.into();
        let user = UserNamespace { mode: NamespaceMode::POD.into(), ..Default::default() };
        let cases = [
            (NamespaceOption { network: node(), ..Default::default() }, "share the node's network"),
            (NamespaceOption { pid: node(), ..Default::default() }, "share the node's process ids"),
            (NamespaceOption { ipc: node(), ..Default::default() }, "share the node's IPC"),
            (NamespaceOption { userns_options: Some(user).into(), ..Default::default() }, "user namespaces"),
        ];
        for (options, words) in cases {
            let sentence = check_pod(&with(options).spec(&id(), "")).unwrap_err().to_string();
            assert!(sentence.contains(words), "{sentence}");
        }
    }

    #[test]
    fn limits_cgroup_and_settings_are_those_of_the_pod() {
        let resources = LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 150_000,
            memory_limit_in_bytes: 1 << 30,
            ..Default::default()
        };
        let linux = LinuxPodSandboxConfig {
            cgroup_parent: "/kubepods/burstable/pod1/".to_owned(),
            sysctls: [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into(),
            resources: Some(resources).into(),
            ..Default::default()
        };
        let config = PodSandboxConfig { linux: Some(linux).into(), hostname: "web".to_owned(), ..Default::default() };
        let options = Any { type_url: TYPE.to_owned(), value: config.write_to_bytes().unwrap(), ..Default::default() };
        let spec = PodConfig::parse(&options).unwrap().spec(&id(), "");
        let linux = spec.linux.unwrap();
        assert_eq!((spec.hostname.as_str(), linux.cgroups_path.as_str()), ("web", "/kubepods/burstable/pod1/p1"));
        assert_eq!(linux.sysctl["net.ipv4.ip_forward"], "1");
        let sums = [POD_MEMORY, POD_QUOTA, POD_PERIOD].map(|key| spec.annotations[key].as_str());
        assert_eq!(sums, ["1073741824", "150000", "100000"]);
    }

    #[test]
    fn low_ports_and_ping_are_for_every_user_unless_the_pod_says_otherwise() {
        let sysctls = |given: &[(&str, &str)]| {
            let sysctls = given.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let linux = LinuxPodSandboxConfig { sysctls, ..Default::default() };
            let config = PodSandboxConfig { linux: Some(linux).into(), ..Default::default() };
            let sysctls = PodConfig(config).spec(&id(), "").linux.unwrap().sysctl;
            sysctls.into_values().collect::<Vec<_>>()
        };
        assert_eq!(sysctls(&[]), ["0", "0 2147483647"]);
        assert_eq!(sysctls(&[("net.ipv4.ip_unprivileged_port_start", "1024")]), ["1024", "0 2147483647"]);
        assert_eq!(sysctls(&[("net.ipv4.ping_group_range", "1 0")]), ["0", "1 0"]);
    }

    #[test]
    fn a_pod_cannot_speak_for_containerd() {
        let annotations = ["io.kubernetes.cri.sandbox-memory", "io.kubernetes.cri.sandbox-uid", "io.bulkhead.vcpus"];
        let annotations = annotations.map(|key| (key.to_owned(), "4".to_owned()));
        let config = PodSandboxConfig { annotations: annotations.into(), ..Default::default() };
        let spec = PodConfig(config).spec(&id(), "");
        assert_eq!(spec.annotations.into_keys().collect::<Vec<_>>(), ["io.bulkhead.vcpus"]);
    }

    #[test]
    fn a_pod_has_the_uid_that_kubelet_gave_it() {
        let metadata = PodSandboxMetadata { uid: "0b8e7a52".to_owned(), ..Default::default() };
        let config = PodSandboxConfig { metadata: Some(metadata).into(), ..Default::default() };
        assert_eq!(PodConfig(config).spec(&id(), "").annotations[POD_UID], "0b8e7a52");
    }

    #[test]
    fn a_slice_of_systemd_is_named_as_systemd_wants() {
        let path = cgroups_path("/kubepods.slice/kubepods-pod1.slice", &id());
        assert_eq!(path, "kubepods-pod1.slice:cri-containerd:p1");
        assert_eq!(cgroups_path("", &id()), "");
    }

    #[test]
    fn configurations_of_another_kind_are_refused() {
        let any = |type_url: &str, value: &[u8]| Any {
            type_url: type_url.to_owned(),
            value: value.to_vec(),
            ..Default::default()
        };
        assert!(PodConfig::parse(&any("types/example.Pod", b"")).unwrap_err().to_string().contains("example.Pod"));
        assert!(PodConfig::parse(&any(TYPE, b"\x12\xff")).unwrap_err().to_string().contains("malformed"));
    }
}
