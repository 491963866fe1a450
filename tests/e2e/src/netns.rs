//! Network namespaces with the interfaces that CNI plugins make, as containerd would have them made for a pod.

use crate::container::Finished;
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Where Debian has the plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// A namespace with a name, and what plugins made in it. Removed with everything when the test ends.
#[derive(Debug)]
pub struct Netns {
    name: String,
    added: Vec<(String, Value)>,
}

/// Runs a program of the node; its failure is the test's.
#[track_caller]
pub fn run(line: &[&str]) -> String {
    try_run(line).success().stdout()
}

pub fn try_run(line: &[&str]) -> Finished {
    let output = Command::new(line[0]).args(&line[1..]).stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("{line:?}: {error}")).into()
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

impl Netns {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("e2e-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(&["ip", "netns", "add", &name]);
        Self { name, added: Vec::new() }
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// The flag of `ctr run` that starts a container in it.
    pub fn flag(&self) -> String {
        format!("network:{}", self.path().display())
    }

    /// Has a plugin make an interface.
    #[track_caller]
    pub fn add(mut self, interface: &str, config: Value) -> Self {
        self.plugin("ADD", interface, &config);
        self.added.push((interface.to_owned(), config));
        self
    }

    fn plugin(&self, command: &str, interface: &str, config: &Value) {
        let plugin = config["type"].as_str().expect("a plugin's name");
        let mut child = Command::new(format!("{PLUGINS}/{plugin}"))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &self.name)
            .env("CNI_NETNS", self.path())
            .env("CNI_IFNAME", interface)
            .env("CNI_PATH", PLUGINS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the plugin is installed");
        let stdin = child.stdin.take().expect("stdin is piped");
        (&stdin).write_all(config.to_string().as_bytes()).expect("the plugin reads its configuration");
        drop(stdin);
        let finished = Finished::from(child.wait_with_output().expect("the plugin ends"));
        assert!(finished.code == 0 || command == "DEL", "{plugin} {command}: {}", finished.stdout());
    }

    /// A program of the node, run in the namespace.
    #[track_caller]
    pub fn run(&self, line: &[&str]) -> String {
        run(&[&["ip", "netns", "exec", self.name.as_str()], line].concat())
    }

    /// Does something of this process in the namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.path()).expect("the namespace is there");
        let enter = move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).expect("root may enter it");
            work()
        };
        std::thread::scope(|scope| scope.spawn(enter).join().expect("the work does not panic"))
    }

    /// The address of one interface in a family: `-4` or `-6`.
    pub fn address(&self, interface: &str, family: &str) -> String {
        let shown = self.run(&["ip", family, "-o", "address", "show", "dev", interface, "scope", "global"]);
        let address = shown.split_whitespace().nth(3).and_then(|address| address.split('/').next());
        address.unwrap_or_else(|| panic!("no address: {shown:?}")).to_owned()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        for (interface, config) in &self.added {
            self.plugin("DEL", interface, config);
        }
        try_run(&["ip", "netns", "delete", &self.name]);
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

/// Interfaces and ingress disciplines in every named namespace, for the search for leaks.
pub(crate) fn contents() -> Vec<String> {
    let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.flat_map(|name| contents_of(&name)).collect()
}

fn contents_of(name: &str) -> Vec<String> {
    let links = try_run(&["ip", "-n", name, "-brief", "link"]).stdout();
    let links = links.lines().filter_map(|line| line.split_whitespace().next().map(|link| format!("{name} {link}")));
    let disciplines = try_run(&["tc", "-n", name, "qdisc", "show"]).stdout();
    let disciplines = disciplines.lines().filter(|line| line.contains("ingress"));
    links.chain(disciplines.map(|line| format!("{name} {line}"))).collect()
}
