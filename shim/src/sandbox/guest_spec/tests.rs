use super::*;
use serde_json::json;

fn spec(changes: Value) -> Spec {
    let namespaces = json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}]);
    let mut spec = json!({"ociVersion": "1.1.0", "linux": {"namespaces": namespaces}});
    merge(&mut spec, changes);
    serde_json::from_value(spec).unwrap()
}

fn merge(to: &mut Value, from: Value) {
    match (to, from) {
        (Value::Object(to), Value::Object(from)) => {
            for (key, value) in from {
                merge(to.entry(key).or_insert(Value::Null), value);
            }
        }
        (to, from) => *to = from,
    }
}

fn refusal(changes: Value) -> String {
    let spec = spec(changes);
    let result = host_mounts(&spec).and_then(|mounts| {
        let sources: Vec<_> = mounts.iter().map(|_| "/guest".to_owned()).collect();
        guest_spec(&spec, &sources)
    });
    result.unwrap_err().to_string()
}

fn kinds(spec: &Spec) -> Vec<&str> {
    spec.linux.as_ref().unwrap().namespaces.iter().map(|namespace| namespace.kind.as_str()).collect()
}

#[test]
fn what_is_not_the_nodes_stays_as_it_is() {
    let before = spec(json!({
        "hostname": "web",
        "root": {"path": "rootfs", "readonly": true},
        "process": {"terminal": true, "args": ["sh"], "user": {"uid": 7}, "capabilities": {"bounding": ["CAP_KILL"]}},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]}],
        "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ERRNO"}, "maskedPaths": ["/proc/kcore"], "sysctl": {"a": "b"},
            "resources": {"devices": [{"allow": false}], "memory": {"limit": 5}}},
    }));
    let mut expected = before.clone();
    expected.linux.as_mut().unwrap().namespaces.retain(|namespace| namespace.kind != "network");
    assert_eq!(guest_spec(&before, &[]).unwrap(), expected);
}

#[test]
fn namespaces_of_the_node_are_left_out() {
    let namespaces = json!([
        {"type": "pid"}, {"type": "mount"}, {"type": "cgroup"},
        {"type": "ipc", "path": "/proc/9/ns/ipc"}, {"type": "uts", "path": "/proc/9/ns/uts"},
        {"type": "network", "path": "/var/run/netns/x"},
    ]);
    let spec = guest_spec(&spec(json!({"linux": {"namespaces": namespaces}})), &[]).unwrap();
    assert_eq!(kinds(&spec), ["pid", "mount", "cgroup"]);
}

#[test]
fn labels_annotations_and_cgroup_paths_of_the_node_are_left_out() {
    let spec = guest_spec(
        &spec(json!({
            "annotations": {"run.oci.handler": "wasm"},
            "process": {"apparmorProfile": "cri-containerd.apparmor.d", "selinuxLabel": "system_u:system_r:container_t:s0"},
            "linux": {"cgroupsPath": "/default/web", "mountLabel": "x",
                "resources": {"cpu": {"cpus": "0-3", "mems": "0", "shares": 5},
                    "hugepageLimits": [{"pageSize": "2MB", "limit": 0}, {"pageSize": "1GB", "limit": 0}]}},
        })),
        &[],
    );
    let value = serde_json::to_value(spec.unwrap()).unwrap();
    assert_eq!(value.get("annotations"), None);
    assert_eq!(value["process"].get("apparmorProfile").or(value["process"].get("selinuxLabel")), None);
    assert_eq!(value["linux"].get("cgroupsPath").or(value["linux"].get("mountLabel")), None);
    assert_eq!(value["linux"]["resources"], json!({"cpu": {"shares": 5}}));
}

#[test]
fn host_mounts_get_their_place_in_the_share() {
    let spec = spec(json!({"mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/etc/hosts", "type": "bind", "source": "/var/lib/hosts", "options": ["rbind", "rprivate", "ro"]},
        {"destination": "/data", "type": "", "source": "/srv/data", "options": ["bind", "rslave"]},
    ]}));
    let mounts = host_mounts(&spec).unwrap();
    let tree = |recursive, read_only, follows_source| TreeOptions { recursive, read_only, follows_source };
    let mount = |index, destination: &str, source: &str, options| HostMount {
        index,
        destination: destination.into(),
        source: source.into(),
        options,
    };
    assert_eq!(
        mounts,
        [
            mount(1, "/etc/hosts", "/var/lib/hosts", tree(true, true, false)),
            mount(2, "/data", "/srv/data", tree(false, false, true)),
        ]
    );
    let guest = guest_spec(&spec, &["/share/0".to_owned(), "/share/1".to_owned()]).unwrap();
    let sources: Vec<_> = guest.mounts.iter().map(|mount| mount.source.display().to_string()).collect();
    assert_eq!(sources, ["proc", "/share/0", "/share/1"]);
    assert_eq!(guest.mounts[1].options, ["rbind", "ro"]);
}

#[test]
fn what_a_microvm_cannot_give_is_refused_in_one_sentence() {
    let bind =
        |options: Value| json!({"mounts": [{"destination": "/d", "type": "bind", "source": "/s", "options": options}]});
    let mapped = |key: &str| {
        let mount = json!({"destination": "/d", "type": "bind", "source": "/s", key: [{"hostID": 1}]});
        json!({"mounts": [mount]})
    };
    let without = |kind: &str| {
        let all = ["pid", "ipc", "uts", "mount", "network"];
        let namespaces: Vec<_> = all.iter().filter(|other| **other != kind).map(|kind| json!({"type": kind})).collect();
        json!({"linux": {"namespaces": namespaces}})
    };
    let cases = [
        (json!({"hooks": {"prestart": [{"path": "/x"}]}}), "prestart hook /x is a program of the node"),
        (json!({"process": {"commandLine": "sh"}}), "process.commandLine of the specification is not known"),
        (json!({"linux": {"memoryPolicy": {"mode": "x"}}}), "linux.memoryPolicy of the specification is not known"),
        (json!({"linux": {"resources": {"x": 1}}}), "linux.resources.x of the specification is not known"),
        (json!({"solaris": {"milestone": "x"}}), "solaris of the specification is not known"),
        (without("network"), "no network namespace"),
        (without("pid"), "no pid namespace"),
        (without("ipc"), "no ipc namespace"),
        (without("mount"), "mount namespace"),
        (json!({"linux": {"uidMappings": [{"hostID": 1}]}}), "user namespaces"),
        (json!({"linux": {"devices": [{"path": "/dev/nvidia0"}]}}), "/dev/nvidia0"),
        (json!({"process": {"apparmorProfile": "localhost"}}), "AppArmor profile \"localhost\""),
        (json!({"process": {"selinuxLabel": "a:b:c:d"}}), "SELinux label \"a:b:c:d\""),
        (json!({"linux": {"resources": {"hugepageLimits": [{"pageSize": "2MB", "limit": 5}]}}}), "huge pages (2MB)"),
        (json!({"linux": {"intelRdt": {"closID": "x"}}}), "Intel RDT"),
        (json!({"linux": {"seccomp": {"listenerPath": "/x.sock"}}}), "seccomp listener"),
        (json!({"linux": {"seccomp": {"defaultAction": "SCMP_ACT_NOTIFY"}}}), "seccomp listener"),
        (json!({"linux": {"seccomp": {"syscalls": [{"action": "SCMP_ACT_NOTIFY"}]}}}), "seccomp listener"),
        (json!({"linux": {"resources": {"blockIO": {"throttleReadBpsDevice": [{"major": 8}]}}}}), "block I/O"),
        (json!({"mounts": [{"destination": "/d", "type": "nfs", "source": "x"}]}), "mount /d: type \"nfs\""),
        (bind(json!(["rbind", "rshared"])), "mount /d: mounts made in a microVM"),
        (bind(json!(["bind", "idmap"])), "mount /d: id-mapped"),
        (mapped("uidMappings"), "mount /d: id-mapped"),
        (mapped("gidMappings"), "mount /d: id-mapped"),
        (json!({"mounts": [{"destination": "/d", "type": "bind", "source": "s"}]}), "not an absolute path"),
    ];
    for (changes, words) in cases {
        let sentence = refusal(changes);
        assert!(sentence.contains(words), "{sentence:?} lacks {words:?}");
        assert!(!sentence.contains('\n'), "{sentence:?}");
    }
}

#[test]
fn a_pod_is_refused_for_what_its_members_would_be() {
    let pod = |process| check_pod(&spec(json!({"process": process}))).map_err(|error| error.to_string());
    assert!(pod(json!({"selinuxLabel": "a:b:c"})).unwrap_err().contains("a:b:c"));
    assert_eq!(pod(json!({"apparmorProfile": "unconfined"})), Ok(()));
}

#[test]
fn empty_lists_are_nothing_to_refuse() {
    let empty = json!({
        "hooks": {"prestart": []},
        "linux": {"uidMappings": [], "devices": [], "intelRdt": null, "resources": {"blockIO": {"weight": 10}}},
    });
    guest_spec(&spec(empty), &[]).unwrap();
}
