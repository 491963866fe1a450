//! OCI documents as crun is to see them.
//!
//! The shim has replaced everything that meant the node. What only the guest knows is set here: where the root
//! filesystem is and which cgroup is used. Documents stay JSON values: what the agent doesn't read it keeps.

use crate::error::Error;
use crate::id::ContainerId;
use agent_protocol::SHARE_MOUNT;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Parent of all containers' cgroups.
pub const CGROUP_PARENT: &str = "bulkhead";

/// A container's `config.json`, changed for the guest.
#[derive(Debug)]
pub struct ContainerSpec {
    document: Value,
    /// Settings of the pod's network, which the container shares with the guest: crun would refuse them.
    pub network_sysctls: Vec<(String, String)>,
}

/// An OCI `process` object.
#[derive(Debug)]
pub struct ProcessSpec {
    document: Value,
}

impl ContainerSpec {
    pub fn for_guest(json: &[u8], id: &ContainerId, rootfs: &Path) -> Result<Self, Error> {
        let mut document = parse("container specification", json)?;
        object(&mut document["root"])?.insert("path".into(), json!(rootfs));
        object(&mut document["linux"])?.insert("cgroupsPath".into(), json!(format!("/{CGROUP_PARENT}/{id}")));
        let network_sysctls = take_network_sysctls(&mut document)?;
        Ok(Self { document, network_sysctls })
    }

    pub fn terminal(&self) -> bool {
        self.document["process"]["terminal"] == true
    }

    /// For processes that are added to the container too: crun sets it for the first one only.
    pub fn oom_score(&self) -> i64 {
        self.document["process"]["oomScoreAdj"].as_i64().unwrap_or_default().clamp(-1000, 1000)
    }

    /// Gives the container a device: a node, and a rule that lets it be used.
    pub fn add_device(&mut self, device: &DeviceNode) -> Result<(), Error> {
        let linux = object(&mut self.document["linux"])?;
        let node = json!({
            "path": device.path, "type": "b", "major": device.major, "minor": device.minor,
            "fileMode": device.mode, "uid": device.uid, "gid": device.gid,
        });
        list(linux.entry("devices").or_insert_with(|| json!([])))?.push(node);
        let resources = object(linux.entry("resources").or_insert_with(|| json!({})))?;
        list(resources.entry("devices").or_insert_with(|| json!([])))?.push(device.rule());
        Ok(())
    }

    /// For a guest that grows up to `bytes`: what would follow from the memory that it has now, follows from those. A container
    /// without a limit has that one, and a tmpfs without a size half of it.
    pub fn expect_memory(&mut self, bytes: u64) -> Result<(), Error> {
        let linux = object(&mut self.document["linux"])?;
        let resources = object(linux.entry("resources").or_insert_with(|| json!({})))?;
        let memory = object(resources.entry("memory").or_insert_with(|| json!({})))?;
        if memory.get("limit").and_then(Value::as_i64).is_none_or(|limit| limit <= 0) {
            memory.insert("limit".into(), json!(bytes));
        }
        let mounts = self.document["mounts"].as_array_mut().map_or(&mut [][..], Vec::as_mut_slice);
        for mount in mounts.iter_mut().filter(|mount| mount["type"] == "tmpfs") {
            let options = list(object(mount)?.entry("options").or_insert_with(|| json!([])))?;
            let sizes = ["size=", "nr_blocks="];
            let has_size = |option: &Value| {
                option.as_str().is_some_and(|option| sizes.iter().any(|size| option.starts_with(size)))
            };
            if !options.iter().any(has_size) {
                options.push(json!(format!("size={}", bytes / 2)));
            }
        }
        Ok(())
    }

    /// The sources of mounts that are in the pod's file share, which has to be mounted before.
    pub fn shared_sources(&self) -> Vec<PathBuf> {
        let mounts = self.document["mounts"].as_array().map_or(&[][..], Vec::as_slice);
        let sources = mounts.iter().filter_map(|mount| mount["source"].as_str());
        sources.map(PathBuf::from).filter(|source| source.starts_with(SHARE_MOUNT)).collect()
    }

    /// Has the container see the processes of the namespace that `process` is in.
    pub fn join_pid_namespace(&mut self, process: u32) -> Result<(), Error> {
        let namespaces = self.document.pointer_mut("/linux/namespaces").and_then(Value::as_array_mut);
        let pid = namespaces.into_iter().flatten().find(|namespace| namespace["type"] == "pid");
        let pid = pid.ok_or_else(|| Error::invalid("container specification", "", "it has no pid namespace"))?;
        object(pid)?.insert("path".into(), json!(format!("/proc/{process}/ns/pid")));
        Ok(())
    }

    pub fn to_json(&self) -> String {
        self.document.to_string()
    }
}

impl ProcessSpec {
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        Ok(Self { document: parse("process", json)? })
    }

    pub fn terminal(&self) -> bool {
        self.document["terminal"] == true
    }

    pub fn to_json(&self) -> String {
        self.document.to_string()
    }
}

/// A disk of the guest, as a container sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceNode {
    pub path: String,
    pub major: u64,
    pub minor: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub access: String,
}

impl DeviceNode {
    /// For `linux.resources.devices`.
    fn rule(&self) -> Value {
        json!({"allow": true, "type": "b", "major": self.major, "minor": self.minor, "access": self.access})
    }
}

/// New limits of a container, its devices among them if the document is about devices at all.
pub fn with_devices(resources: &[u8], devices: &[DeviceNode]) -> Result<Vec<u8>, Error> {
    let mut document = parse("resources", resources)?;
    if let Some(rules) = document.get_mut("devices").filter(|rules| !rules.is_null()) {
        list(rules)?.extend(devices.iter().map(DeviceNode::rule));
    }
    Ok(document.to_string().into_bytes())
}

fn parse(what: &'static str, json: &[u8]) -> Result<Value, Error> {
    match serde_json::from_slice(json) {
        Ok(document @ Value::Object(_)) => Ok(document),
        Ok(_) => Err(Error::invalid(what, "", "it is not a JSON object")),
        Err(error) => Err(Error::invalid(what, "", error.to_string())),
    }
}

fn object(value: &mut Value) -> Result<&mut Map<String, Value>, Error> {
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut().ok_or_else(|| Error::invalid("container specification", "", "a section is not an object"))
}

fn list(value: &mut Value) -> Result<&mut Vec<Value>, Error> {
    if value.is_null() {
        *value = json!([]);
    }
    value.as_array_mut().ok_or_else(|| Error::invalid("container specification", "", "its devices are no list"))
}

fn take_network_sysctls(document: &mut Value) -> Result<Vec<(String, String)>, Error> {
    let own_network = document["linux"]["namespaces"]
        .as_array()
        .is_some_and(|all| all.iter().any(|namespace| namespace["type"] == "network"));
    let Some(sysctls) = document.pointer_mut("/linux/sysctl").filter(|_| !own_network).and_then(Value::as_object_mut)
    else {
        return Ok(Vec::new());
    };
    let names: Vec<String> = sysctls.keys().filter(|name| name.starts_with("net.")).cloned().collect();
    let mut taken = Vec::new();
    for name in names {
        match sysctls.remove(&name) {
            Some(Value::String(value)) => taken.push((name, value)),
            _ => return Err(Error::invalid("sysctl", &name, "its value is no text")),
        }
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &Value) -> ContainerSpec {
        let id = ContainerId::parse("web").unwrap();
        ContainerSpec::for_guest(json.to_string().as_bytes(), &id, Path::new("/bundle/rootfs")).unwrap()
    }

    #[test]
    fn root_and_cgroup_are_the_guests_and_the_rest_is_kept() {
        let spec = spec(&json!({"root": {"path": "/x", "readonly": true}, "process": {"args": ["a"]}, "extra": 1}));
        let expected = json!({
            "root": {"path": "/bundle/rootfs", "readonly": true},
            "process": {"args": ["a"]},
            "linux": {"cgroupsPath": "/bulkhead/web"},
            "extra": 1
        });
        assert_eq!(serde_json::from_str::<Value>(&spec.to_json()).unwrap(), expected);
    }

    #[test]
    fn what_follows_from_memory_follows_from_what_will_be_there() {
        let tmpfs = |options: Value| json!({"type": "tmpfs", "destination": "/t", "options": options});
        let mut spec = spec(&json!({"mounts": [
            {"type": "proc"}, tmpfs(json!(["size=1m"])), tmpfs(json!(["nr_blocks=7"])), tmpfs(json!(["ro"])), {"type": "tmpfs"}
        ]}));
        spec.expect_memory(1000).unwrap();
        let expected = json!({
            "root": {"path": "/bundle/rootfs"},
            "mounts": [
                {"type": "proc"}, tmpfs(json!(["size=1m"])), tmpfs(json!(["nr_blocks=7"])),
                tmpfs(json!(["ro", "size=500"])), {"type": "tmpfs", "options": ["size=500"]}
            ],
            "linux": {"cgroupsPath": "/bulkhead/web", "resources": {"memory": {"limit": 1000}}},
        });
        assert_eq!(serde_json::from_str::<Value>(&spec.to_json()).unwrap(), expected);
    }

    #[test]
    fn limits_stay_as_they_are() {
        for (limit, kept) in [(json!(100), 100), (json!(5000), 5000), (json!(-1), 1000), (json!(0), 1000)] {
            let mut spec = spec(&json!({"linux": {"resources": {"memory": {"limit": limit}}}}));
            spec.expect_memory(1000).unwrap();
            let document: Value = serde_json::from_str(&spec.to_json()).unwrap();
            assert_eq!(document["linux"]["resources"]["memory"]["limit"], kept);
        }
    }

    #[test]
    fn the_oom_score_is_the_containers_or_an_ordinary_one() {
        assert_eq!(spec(&json!({"process": {"oomScoreAdj": 500}})).oom_score(), 500);
        assert_eq!(spec(&json!({"process": {"oomScoreAdj": -100_000}})).oom_score(), -1000);
        assert_eq!(spec(&json!({"process": {"oomScoreAdj": "x"}})).oom_score(), 0);
        assert_eq!(spec(&json!({})).oom_score(), 0);
    }

    #[test]
    fn network_sysctls_are_taken_when_the_network_is_shared() {
        let document = json!({"linux": {"sysctl": {"net.ipv4.ip_forward": "1", "kernel.shmmax": "2"}}});
        let shared = spec(&document);
        assert_eq!(shared.network_sysctls, [("net.ipv4.ip_forward".to_owned(), "1".to_owned())]);
        assert!(!shared.to_json().contains("ip_forward") && shared.to_json().contains("shmmax"));
    }

    #[test]
    fn network_sysctls_of_an_own_network_are_cruns() {
        let document = json!({"linux": {"sysctl": {"net.ipv4.ip_forward": "1"}, "namespaces": [{"type": "network"}]}});
        assert!(spec(&document).network_sysctls.is_empty());
    }

    #[test]
    fn mounts_from_the_share_are_noticed() {
        let volume = "/run/bulkhead/share/.volumes/0";
        let mounts = json!([{"source": volume}, {"source": "/run/bulkhead/shared"}, {"type": "proc"}, 7]);
        assert_eq!(spec(&json!({"mounts": mounts})).shared_sources(), [Path::new(volume)]);
        assert!(spec(&json!({"mounts": 7})).shared_sources().is_empty());
    }

    fn disk() -> DeviceNode {
        let (path, access) = ("/dev/xvda".to_owned(), "rw".to_owned());
        DeviceNode { path, major: 254, minor: 16, mode: 0o640, uid: 5, gid: 6, access }
    }

    #[test]
    fn a_disk_gets_a_node_and_a_rule() {
        let deny = json!({"allow": false, "access": "rwm"});
        let rule = json!({"allow": true, "type": "b", "major": 254, "minor": 16, "access": "rw"});
        let node =
            json!({"path": "/dev/xvda", "type": "b", "major": 254, "minor": 16, "fileMode": 416, "uid": 5, "gid": 6});
        let mut with = spec(&json!({"linux": {"resources": {"devices": [deny]}}}));
        with.add_device(&disk()).unwrap();
        let document: Value = serde_json::from_str(&with.to_json()).unwrap();
        assert_eq!(document["linux"]["devices"], json!([node]));
        assert_eq!(document["linux"]["resources"]["devices"], json!([deny, rule]));
        spec(&json!({})).add_device(&disk()).unwrap();
        assert!(spec(&json!({"linux": {"devices": 7}})).add_device(&disk()).is_err());

        let update = |resources: Value| {
            let updated = with_devices(resources.to_string().as_bytes(), &[disk()]).unwrap();
            serde_json::from_slice::<Value>(&updated).unwrap()
        };
        assert_eq!(update(json!({"devices": [deny]})), json!({"devices": [deny, rule]}));
        assert_eq!(update(json!({"memory": {"limit": 5}})), json!({"memory": {"limit": 5}}));
    }

    #[test]
    fn a_shared_pid_namespace_is_named_by_a_process_in_it() {
        let mut shared = spec(&json!({"linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]}}));
        shared.join_pid_namespace(42).unwrap();
        let document: Value = serde_json::from_str(&shared.to_json()).unwrap();
        let expected = json!([{"type": "mount"}, {"type": "pid", "path": "/proc/42/ns/pid"}]);
        assert_eq!(document["linux"]["namespaces"], expected);
        assert!(spec(&json!({})).join_pid_namespace(42).is_err());
    }

    #[test]
    fn documents_that_are_no_objects_are_refused() {
        let id = ContainerId::parse("web").unwrap();
        for json in ["", "[]", "{\"linux\": 1}", "{\"root\": []}", &"[".repeat(100_000)] {
            assert!(ContainerSpec::for_guest(json.as_bytes(), &id, Path::new("/r")).is_err(), "{json:.20}");
        }
        assert!(ProcessSpec::parse(b"null").is_err());
    }
}
