//! A network of the test's own for the pods that containerd makes meanwhile.
//!
//! containerd uses the first configuration of its directory. The test's comes before the node's, and names one plugin: a
//! script that calls others in turn, as multus does, and answers with what the first of them said.

use crate::cri::call;
use crate::cri::messages::{StatusRequest, StatusResponse};
use crate::eventually;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;

const CONFIGURATION: &str = "/etc/cni/net.d/00-e2e.conflist";
const PLUGIN: &str = "/usr/lib/cni/e2e";

/// A namespace's name, for the script's last lines, is `$namespace`; what it will answer is `$result`.
const SCRIPT: &str = r#"#!/bin/sh
PATH=/usr/sbin:/usr/bin
cat >/dev/null
interface() {
    said=$(printf %s "$3" | CNI_IFNAME=$1 "/usr/lib/cni/$2") || { printf %s "$said"; exit 1; }
    [ -n "$result" ] || result=$said
}
"#;

/// In place until it is dropped. Pods that have it must go first.
#[derive(Debug)]
pub struct Network {
    name: String,
}

impl Network {
    /// Interfaces with the plugins' configurations, the pod's own first, and lines of shell that are run when all are there.
    #[track_caller]
    pub fn new(interfaces: &[(&str, Value)], then: &str) -> Self {
        let network = Self { name: format!("e2e-{}", std::process::id()) };
        let mut script = SCRIPT.to_owned();
        for (interface, config) in interfaces {
            let plugin = config["type"].as_str().expect("a plugin's name");
            script += &format!("interface {interface} {plugin} '{config}'\n");
        }
        script += "[ \"$CNI_COMMAND\" = ADD ] || exit 0\nnamespace=${CNI_NETNS##*/}\n";
        script += &format!("{then}\nprintf '%s\\n' \"$result\"\n");
        fs::write(PLUGIN, script).expect("the plugins' directory takes a file");
        fs::set_permissions(PLUGIN, fs::Permissions::from_mode(0o755)).expect("it may be run");
        let list = json!({ "cniVersion": "1.0.0", "name": network.name, "plugins": [{ "type": "e2e" }] });
        fs::write(CONFIGURATION, list.to_string()).expect("the configurations' directory takes a file");
        eventually("containerd has the test's network", || network.loaded());
        network
    }

    /// Whether it is what containerd makes pods with now.
    fn loaded(&self) -> bool {
        let request = StatusRequest { verbose: true, ..Default::default() };
        let status: StatusResponse = call("RuntimeService/Status", &request).expect("containerd has a status");
        status.info.get("cniconfig").is_some_and(|config| config.contains(&format!("{:?}", self.name)))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        fs::remove_file(CONFIGURATION).ok();
        eventually("containerd has the node's network again", || !self.loaded());
        fs::remove_file(PLUGIN).ok();
    }
}

/// A bridge with both families, a default route and an MTU of its own.
pub fn bridge() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "e2e-bridge", "type": "bridge", "bridge": "e2e0",
        "isGateway": true, "ipMasq": false, "mtu": 1400,
        "ipam": {
            "type": "host-local", "dataDir": "/run/e2e-cni",
            "ranges": [[{ "subnet": "10.77.0.0/16" }], [{ "subnet": "fd77::/64" }]],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
        },
    })
}

/// A link to the node alone.
pub fn ptp() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "e2e-ptp", "type": "ptp",
        "ipam": {
            "type": "host-local", "dataDir": "/run/e2e-cni",
            "ranges": [[{ "subnet": "10.78.0.0/24" }]], "routes": [{ "dst": "10.99.0.0/16" }],
        },
    })
}

/// An address of its own on an interface of the node, next to those of other pods.
pub fn macvlan(parent: &str) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "e2e-macvlan", "type": "macvlan", "master": parent, "mode": "bridge",
        "ipam": { "type": "host-local", "dataDir": "/run/e2e-cni", "ranges": [[{ "subnet": "10.79.0.0/24" }]] },
    })
}
