use super::super::id::SandboxId;
use super::*;
use nix::sys::socket::{MsgFlags, recv};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

/// The cgroup hierarchy, when this is root on a machine with cgroup v2.
fn hierarchy() -> Option<PathBuf> {
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    let root = roots.into_iter().find(|root| root.join("cgroup.controllers").exists());
    let root = root.filter(|_| nix::unistd::geteuid().is_root());
    if root.is_none() {
        eprintln!("SKIPPED: needs root and cgroup v2");
    }
    root
}

/// A cgroup of this test alone.
fn cgroup(name: &str) -> Option<Cgroup> {
    let location = format!("bulkhead-test/{}-{name}", std::process::id());
    let cgroup = Cgroup::new(&hierarchy()?, Path::new(&location), &SandboxId::test("bulkhead-test", name));
    cgroup.create().unwrap();
    Some(cgroup)
}

fn spawn(script: &str, cgroup: &Cgroup) -> (Process, OwnedFd) {
    let (ours, theirs) = packet_pair().unwrap();
    let arguments = [OsStr::new("-c"), OsStr::new(script)];
    let program = Program { name: "script", path: Path::new("/bin/sh"), arguments: &arguments, oom_score: 17 };
    (Process::spawn(&program, theirs, cgroup).unwrap(), ours)
}

async fn ended(process: &Process) -> String {
    process.ended().wait_for(Option::is_some).await.unwrap().clone().unwrap()
}

fn remove(cgroup: &Cgroup) {
    cgroup.kill(Duration::from_secs(3)).unwrap();
    let made = cgroup.location().to_owned();
    cgroup.remove(&[made], Duration::ZERO).unwrap();
}

#[tokio::test]
async fn a_process_has_its_descriptors_its_cgroup_and_nothing_else() {
    let Some(cgroup) = cgroup("nothing-else") else { return };
    // Descriptor 9 would leak: Rust opens everything close-on-exec, C libraries do not.
    let leak = std::fs::File::open("/dev/null").unwrap();
    nix::fcntl::fcntl(&leak, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let script = "{ echo /proc/self/fd/*; grep -c . /proc/$$/environ; grep ^0:: /proc/$$/cgroup; cat /proc/$$/oom_score_adj; } >&0";
    let (process, socket) = spawn(script, &cgroup);
    let said = tokio::task::spawn_blocking(move || {
        let mut said = String::new();
        let mut packet = [0; 4096];
        while let Ok(length @ 1..) = recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            said.push_str(std::str::from_utf8(&packet[..length]).unwrap());
        }
        said
    });
    let said = said.await.unwrap();
    let lines: Vec<_> = said.lines().collect();
    // The shell's own: 3 is the directory that it lists, 10 and above are its copies of what it redirects.
    let descriptors = lines[0].split(' ').filter_map(|path| path.rsplit('/').next()?.parse::<u32>().ok());
    assert!(descriptors.clone().all(|fd| fd <= 3 || fd >= 10), "{said}");
    assert!(descriptors.filter(|&fd| fd < 3).eq(0..3), "{said}");
    assert_eq!(lines[1], "0", "the environment is empty");
    assert!(lines[2].contains("nothing-else"), "{said}");
    assert_eq!(lines[3], "17", "the score is its own, not the shim's");
    assert_eq!(ended(&process).await, "the script ended with exit code 0");
    remove(&cgroup);
}

#[tokio::test]
async fn the_score_of_a_process_changes_while_there_is_one() {
    let Some(cgroup) = cgroup("score") else { return };
    let (process, _socket) = spawn("read line", &cgroup);
    process.set_oom_score(985).unwrap();
    process.set_oom_score(2).unwrap();
    assert_eq!(std::fs::read_to_string(format!("/proc/{}/oom_score_adj", process.pid())).unwrap(), "2\n");
    process.kill();
    ended(&process).await;
    process.set_oom_score(985).unwrap();
    remove(&cgroup);
}

#[tokio::test]
async fn what_a_process_has_written_is_known_while_there_is_one() {
    let Some(cgroup) = cgroup("written") else { return };
    let (process, _socket) = spawn("read line", &cgroup);
    assert_eq!(process.written(), Some(0));
    process.kill();
    ended(&process).await;
    assert_eq!(process.written(), None);
    remove(&cgroup);
}

#[tokio::test]
async fn the_end_of_a_process_tells_its_last_error() {
    let Some(cgroup) = cgroup("last-error") else { return };
    let (process, _socket) = spawn("echo INFO fine >&2; echo 'ERROR no such luck' >&2; exit 3", &cgroup);
    assert_eq!(ended(&process).await, "the script ended with exit code 3: no such luck");
    remove(&cgroup);
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named_and_leaves_nothing() {
    let Some(cgroup) = cgroup("missing") else { return };
    let (_socket, theirs) = packet_pair().unwrap();
    let program = Program { name: "script", path: Path::new("/nowhere/script"), arguments: &[], oom_score: 17 };
    let error = Process::spawn(&program, theirs, &cgroup).unwrap_err().to_string();
    assert!(error.contains("/nowhere/script") && error.contains("No such file"), "{error}");
    // Not even a child that has ended: a cgroup with one cannot be removed.
    let made = cgroup.location().to_owned();
    cgroup.remove(&[made], Duration::ZERO).unwrap();
}

#[tokio::test]
async fn the_shims_ignored_signal_is_not_inherited() {
    let Some(cgroup) = cgroup("signals") else { return };
    let (process, _socket) = spawn("kill -PIPE $$", &cgroup);
    assert_eq!(ended(&process).await, "the script was killed by signal 13");
    remove(&cgroup);
}

#[tokio::test]
async fn killing_takes_effect_and_twice_is_fine() {
    let Some(cgroup) = cgroup("kill") else { return };
    let (process, _socket) = spawn("sleep 1000", &cgroup);
    process.kill();
    assert_eq!(ended(&process).await, "the script was killed by signal 9");
    process.kill();
    remove(&cgroup);
}

#[tokio::test]
async fn killing_the_cgroup_ends_what_the_process_started() {
    let Some(cgroup) = cgroup("all") else { return };
    let (process, _socket) = spawn("sleep 1000 & sleep 1000 & wait", &cgroup);
    let killer = cgroup.clone();
    tokio::task::spawn_blocking(move || killer.kill(Duration::from_secs(3))).await.unwrap().unwrap();
    assert_eq!(ended(&process).await, "the script was killed by signal 9");
    remove(&cgroup);
}

#[tokio::test]
async fn a_cgroup_in_use_is_not_taken_over() {
    let Some(cgroup) = cgroup("in-use") else { return };
    let (_process, _socket) = spawn("sleep 1000", &cgroup);
    assert!(cgroup.create().unwrap_err().to_string().ends_with("is in use by other processes"));
    remove(&cgroup);
}

#[tokio::test]
async fn the_processes_of_others_at_the_location_survive() {
    let Some(theirs) = cgroup("theirs") else { return };
    let (process, _socket) = spawn("sleep 1000", &theirs);
    // The client names a cgroup that is in use: that of the other sandbox, and the one around it.
    let sandbox = SandboxId::test("bulkhead-test", "ours");
    for location in [theirs.location().to_owned(), theirs.location().join("bulkhead:bulkhead-test:theirs")] {
        let ours = Cgroup::new(&hierarchy().unwrap(), &location, &sandbox);
        let made = ours.missing_parents();
        ours.create().unwrap();
        let (own, _socket) = spawn("sleep 1000", &ours);
        ours.kill(Duration::from_secs(3)).unwrap();
        ended(&own).await;
        ours.remove(&made, Duration::ZERO).unwrap();
        assert!(process.ended().borrow().is_none());
    }
    assert!(theirs.create().is_err(), "it still has its process");
    remove(&theirs);
}
