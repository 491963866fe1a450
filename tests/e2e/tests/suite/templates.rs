//! Pods that are made from a machine that has booted already, and pods whose template does not work.

use e2e::log::ContainerdLog;
use e2e::node_config::{NodeConfig, templates_are_off};
use e2e::vmm::Vmm;
use e2e::{BUSYBOX, Container, DEBIAN, FOREVER, eventually};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

const TEMPLATES: &str = "/var/lib/bulkhead/templates";
const WARNING: &str = "the template is not used";

/// Whether this run of the suite is one in which every pod boots.
fn are_off() -> bool {
    let off = templates_are_off();
    if off {
        println!("test skipped: this node's templates are switched off");
    }
    off
}

/// The numbered directory.
fn template() -> PathBuf {
    let entries = fs::read_dir(TEMPLATES).expect("`bulkhead install` makes a template").flatten();
    let mut places = entries.map(|entry| entry.path()).filter(|path| path.is_dir());
    places.next().expect("there is a template")
}

fn is_restored(vmm: &Vmm) -> bool {
    // The VMM sees another root, so that only the end of the name is left.
    vmm.read("maps").lines().any(|line| line.ends_with("/memory"))
}

/// What must be different in each: boot id, both ways to the kernel's generator, and an SSH key.
fn random_of_a_restored_pod() -> [String; 4] {
    // The pod's first process draws: by then the generator must have been seeded anew.
    let script = "set -e; { cat /proc/sys/kernel/random/boot_id; head -c 32 /dev/urandom | sha256sum; \
        head -c 32 /dev/random | sha256sum; \
        ssh-keygen -q -t ed25519 -N '' -C '' -f /tmp/key; cat /tmp/key.pub; } > /tmp/drawn; \
        mv /tmp/drawn /tmp/said; exec sleep infinity";
    let pod = Container::new(DEBIAN, "overlayfs").shell(script).start();
    assert!(is_restored(&Vmm { pid: pod.pid() }));
    let said =
        pod.shell("timeout 60 sh -c 'until [ -e /tmp/said ]; do sleep 0.1; done'; cat /tmp/said").success().stdout();
    let lines: Vec<String> = said.lines().map(str::to_owned).collect();
    lines.try_into().unwrap_or_else(|lines| panic!("{lines:?}"))
}

fn differ(count: usize) {
    let mut seen = BTreeSet::new();
    for number in 1..=count {
        for value in random_of_a_restored_pod() {
            assert!(seen.insert(value.clone()), "pod {number} draws {value}, as one before it did");
        }
    }
}

#[test]
fn restored_pods_have_randomness_of_their_own() {
    if are_off() {
        return;
    }
    differ(3);
}

#[test]
#[ignore = "`make test-long`"]
fn two_hundred_restored_pods_have_two_hundred_boot_ids() {
    if are_off() {
        return;
    }
    differ(200);
}

#[test]
fn the_clock_of_a_restored_pod_is_the_nodes() {
    let seconds = |text: &str| text.trim().parse::<i64>().expect("seconds");
    let pod = Container::new(BUSYBOX, "overlayfs").command(&FOREVER).start();
    let there = seconds(&pod.exec(&["/bin/date", "+%s"]).success().stdout());
    let here = seconds(&e2e::run(&["date", "+%s"]));
    assert!((here - there).abs() <= 2, "{there} in the pod, {here} on the node");
}

#[test]
fn a_restored_pod_has_the_processors_that_it_asks_for() {
    if are_off() {
        return;
    }
    // The template's guest knows of four.
    for (vcpus, restored) in [(3, true), (4, true), (5, false)] {
        let pod = Container::new(BUSYBOX, "overlayfs")
            .argument("--annotation")
            .argument(&format!("io.bulkhead.vcpus={vcpus}"))
            .command(&FOREVER)
            .start();
        assert_eq!(is_restored(&Vmm { pid: pod.pid() }), restored, "{vcpus}");
        assert_eq!(pod.exec(&["/bin/nproc"]).success().stdout().trim(), vcpus.to_string());
        // Each runs something, and their clocks do not go back from one to the next.
        let script = "last=0; for i in $(seq 10); do cpu=$((i % $(nproc))); \
            now=$(taskset -c $cpu awk '{ print int($1 * 100) }' /proc/uptime) || exit 1; \
            [ $now -ge $last ] || exit 2; last=$now; done; echo done";
        assert_eq!(pod.shell(script).success().stdout(), "done\n", "{vcpus}");
    }
}

#[test]
fn templates_can_be_switched_off() {
    if are_off() {
        return;
    }
    let _config = NodeConfig::with("templates = false\n");
    let log = ContainerdLog::from_now_on();
    let pod = Container::new(BUSYBOX, "overlayfs").command(&FOREVER).start();
    assert!(!is_restored(&Vmm { pid: pod.pid() }));
    assert_eq!(log.lines_with(WARNING), Vec::<String>::new());
}

/// Runs a pod that is expected to boot, with one warning.
fn boots_with_a_warning() {
    let log = ContainerdLog::from_now_on();
    let pod = Container::new(BUSYBOX, "overlayfs").command(&FOREVER).start();
    assert!(!is_restored(&Vmm { pid: pod.pid() }));
    assert_eq!(pod.exec(&["/bin/echo", "here"]).success().stdout(), "here\n");
    let warnings = log.wait_for(WARNING);
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
}

/// Puts a file back as it was, with its times.
struct Kept(PathBuf, PathBuf);

impl Kept {
    fn new(path: PathBuf) -> Self {
        let copy = path.with_extension("kept");
        fs::rename(&path, &copy).expect("the file can be moved");
        e2e::run(&["cp", &copy.display().to_string(), &path.display().to_string()]);
        Self(path, copy)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        fs::rename(&self.1, &self.0).expect("the file can be moved back");
        // The rename is a change of its own to the file system.
        e2e::run(&["/opt/bulkhead/bin/bulkhead", "template", "build"]);
    }
}

#[test]
fn a_damaged_template_is_left_alone_with_one_warning() {
    if are_off() {
        return;
    }
    let state = Kept::new(template().join("state"));
    let file = fs::File::options().write(true).open(&state.0).expect("the state can be opened");
    file.write_all_at(b"damage", 100).expect("the state can be written");
    boots_with_a_warning();
}

/// A node that was given another kernel or processor heals by itself.
#[test]
fn an_old_template_that_does_not_work_is_made_anew() {
    if are_off() {
        return;
    }
    let record = PathBuf::from(TEMPLATES).join("current.json");
    let state = fs::File::options().write(true).open(template().join("state")).expect("the state can be opened");
    state.write_all_at(b"damage", 100).expect("the state can be written");
    e2e::run(&["touch", "-d", "2 hours ago", &record.display().to_string()]);
    let old = fs::read(&record).expect("the record of the template");
    boots_with_a_warning();
    // Its files may have the names of the old ones.
    eventually("there is another template", || fs::read(&record).is_ok_and(|new| new != old));
    let log = ContainerdLog::from_now_on();
    let pod = Container::new(BUSYBOX, "overlayfs").command(&FOREVER).start();
    assert!(is_restored(&Vmm { pid: pod.pid() }));
    assert_eq!(log.lines_with(WARNING), Vec::<String>::new());
}

#[test]
fn check_reads_all_of_the_template() {
    if are_off() {
        return;
    }
    let check = || e2e::try_run(&["/opt/bulkhead/bin/bulkhead", "check"]).stdout();
    assert!(
        check().contains("template: pods with 128 MiB of memory or more and up to 4 vCPUs start from it"),
        "{}",
        check()
    );
    let memory = Kept::new(template().join("memory"));
    assert!(check().contains("is not what was recorded"), "{}", check());
    drop(memory);
    assert!(check().contains("start from it"), "{}", check());
}

/// Its record is right, so that the VMM is the first to notice.
#[test]
fn a_state_that_the_vmm_refuses_is_a_reason_to_boot() {
    if are_off() {
        return;
    }
    let place = template();
    let record = PathBuf::from(TEMPLATES).join("current.json");
    let state = Kept::new(place.join("state"));
    let file = fs::File::options().write(true).open(&state.0).expect("the state can be opened");
    file.write_all_at(b"damage", 100).expect("the state can be written");
    let stamp = e2e::run(&["stat", "--format", "%d %i %s %.9Y %.9Z", &state.0.display().to_string()]);
    let numbers: Vec<&str> = stamp.split_whitespace().collect();
    let time = |text: &str| {
        let (seconds, nanoseconds) = text.split_once('.').expect("a fraction");
        serde_json::json!([seconds.parse::<i64>().unwrap(), nanoseconds.parse::<i64>().unwrap()])
    };
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    json["state"] = serde_json::json!({
        "device": numbers[0].parse::<u64>().unwrap(),
        "inode": numbers[1].parse::<u64>().unwrap(),
        "length": numbers[2].parse::<u64>().unwrap(),
        "modified": time(numbers[3]),
        "changed": time(numbers[4]),
    });
    fs::write(&record, json.to_string()).unwrap();
    boots_with_a_warning();
}
