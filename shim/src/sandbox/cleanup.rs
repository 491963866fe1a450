//! Removing all that a sandbox has on the node. The same steps end a sandbox in peace, after a failed boot, and after a
//! crash of its shim: each is idempotent, and none needs the guest or this process's memory.

use super::SandboxError;
use super::cgroup::Cgroup;
use super::host::Host;
use super::id::SandboxId;
use super::mount::{remove_skeleton, unmount_all};
use super::state::Record;
use super::uid;
use std::time::Duration;

/// Killed processes end within milliseconds, unless the kernel is stuck with them.
const KILL: Duration = Duration::from_secs(3);

pub(super) fn cleanup_on(host: &Host, sandbox: &SandboxId) -> Result<(), SandboxError> {
    let directory = host.directory(sandbox);
    if !directory.path.exists() {
        return Ok(());
    }
    // Without a record nothing was made but the directory.
    let record = Record::read(&directory)?;
    // Processes first: nobody uses the mounts and the user id after that.
    if let Some(record) = &record {
        let cgroup = Cgroup::new(&host.cgroups, &record.cgroup, sandbox);
        cgroup.kill(KILL)?;
        cgroup.remove(&record.made)?;
    }
    unmount_all(&directory.share()).map_err(SandboxError::host("unmount", &directory.share().display()))?;
    uid::release(&host.uids(), sandbox)?;
    // The record goes last.
    for part in [directory.share(), directory.tree()] {
        remove_skeleton(&part, &[]).map_err(SandboxError::host("remove", &part.display()))?;
    }
    let files = ["owner", "state.new", "state.json"];
    remove_skeleton(&directory.path, &files).map_err(SandboxError::host("remove", &directory.path.display()))?;
    // Fails while other sandboxes of the namespace exist.
    let _ = std::fs::remove_dir(&directory.namespace);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_sandbox_that_never_existed_is_fine() {
        let root = tempfile::tempdir().unwrap();
        cleanup_on(&Host::below(root.path()), &SandboxId::test("ns", "pod")).unwrap();
    }

    #[test]
    fn a_crash_at_any_step_of_boot_leaves_what_cleanup_removes() {
        let id = SandboxId::test("ns", "pod");
        for steps in 0..5 {
            let root = tempfile::tempdir().unwrap();
            let host = Host::below(root.path());
            let directory = host.directory(&id);
            let make: [&dyn Fn(); 4] = [
                &|| fs::create_dir_all(&directory.path).unwrap(),
                &|| Record { cgroup: "ns/pod".into(), made: Vec::new() }.write(&directory).unwrap(),
                &|| assert_eq!(uid::allocate(&host.uids(), 7, &id, &directory.owner()).unwrap(), 7),
                &|| fs::create_dir_all(directory.tree().join("web/rootfs")).unwrap(),
            ];
            make.iter().take(steps).for_each(|step| step());
            cleanup_on(&host, &id).unwrap();
            cleanup_on(&host, &id).unwrap();
            assert!(!directory.namespace.exists(), "after {steps} steps");
            let uids = fs::read_dir(host.uids()).map_or(0, |uids| uids.count());
            assert_eq!(uids, 0, "after {steps} steps");
        }
    }

    #[test]
    fn others_of_the_namespace_stay() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::below(root.path());
        let [one, other] = ["one", "other"].map(|name| SandboxId::test("ns", name));
        for id in [&one, &other] {
            fs::create_dir_all(host.directory(id).path).unwrap();
            uid::allocate(&host.uids(), 7, id, &host.directory(id).owner()).unwrap();
        }
        cleanup_on(&host, &one).unwrap();
        assert!(host.directory(&other).path.exists() && host.uids().join("8").exists());
        assert!(!host.uids().join("7").exists());
    }
}
