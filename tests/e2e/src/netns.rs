//! Network namespaces of the node: a pod's, which CNI filled, or one of the test's own.

use crate::{run, try_run};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// Where namespaces have names.
const NAMES: &str = "/run/netns";

/// A namespace with a name.
#[derive(Debug)]
pub struct Netns {
    name: String,
    /// Removed with everything in it when the test ends.
    own: bool,
}

impl Netns {
    /// One of the test's own, with nothing in it.
    #[track_caller]
    pub fn empty() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("e2e-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(&["ip", "netns", "add", &name]);
        Self { name, own: true }
    }

    /// The one where an interface has this address.
    #[track_caller]
    pub fn with_address(address: &str) -> Self {
        let here = |name: &String| {
            let shown = try_run(&["ip", "-n", name, "-o", "address"]).stdout();
            shown.contains(&format!(" {address}/"))
        };
        let name = names().into_iter().find(here).unwrap_or_else(|| panic!("no namespace has {address}"));
        Self { name, own: false }
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from(NAMES).join(&self.name)
    }

    /// The flag of `ctr run` that starts a container in it.
    pub fn flag(&self) -> String {
        format!("network:{}", self.path().display())
    }

    /// A program of the node, run in the namespace.
    #[track_caller]
    pub fn run(&self, line: &[&str]) -> String {
        run(&[&["ip", "netns", "exec", self.name.as_str()], line].concat())
    }

    /// Gives it `eth0` with 10.76.0.2, a link to the node, which has 10.76.0.1.
    #[track_caller]
    pub fn link_to_the_node(&self) {
        run(&["ip", "link", "add", "e2e-link", "type", "veth", "peer", "name", "eth0", "netns", &self.name]);
        run(&["ip", "address", "add", "10.76.0.1/24", "dev", "e2e-link"]);
        run(&["ip", "link", "set", "e2e-link", "up"]);
        self.run(&["ip", "address", "add", "10.76.0.2/24", "dev", "eth0"]);
        self.run(&["ip", "link", "set", "eth0", "up"]);
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
    #[track_caller]
    pub fn address(&self, interface: &str, family: &str) -> String {
        let shown = self.run(&["ip", family, "-o", "address", "show", "dev", interface, "scope", "global"]);
        let address = shown.split_whitespace().nth(3).and_then(|address| address.split('/').next());
        address.unwrap_or_else(|| panic!("no address: {shown:?}")).to_owned()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if self.own {
            try_run(&["ip", "netns", "delete", &self.name]);
        }
    }
}

fn names() -> Vec<String> {
    let names = std::fs::read_dir(NAMES).into_iter().flatten().flatten();
    names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Interfaces and ingress disciplines in every named namespace, for the search for leaks.
pub(crate) fn contents() -> Vec<String> {
    names().iter().flat_map(|name| contents_of(name)).collect()
}

fn contents_of(name: &str) -> Vec<String> {
    let links = try_run(&["ip", "-n", name, "-brief", "link"]).stdout();
    let links = links.lines().filter_map(|line| line.split_whitespace().next().map(|link| format!("{name} {link}")));
    let disciplines = try_run(&["tc", "-n", name, "qdisc", "show"]).stdout();
    let disciplines = disciplines.lines().filter(|line| line.contains("ingress"));
    links.chain(disciplines.map(|line| format!("{name} {line}"))).collect()
}
