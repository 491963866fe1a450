//! Removing all that a sandbox has on the node. The same steps end a sandbox in peace, after a failed boot, and after a
//! crash of its shim: each is idempotent, and none needs the guest or this process's memory.

use super::boot::claim;
use super::cgroup::Cgroup;
use super::host::{Host, SandboxDirectory};
use super::id::SandboxId;
use super::mount::remove_skeleton;
use super::state::Record;
use super::{SandboxError, network, share, uid};
use crate::trace;
use std::time::Duration;

/// For killed processes to end when `delete` waits: they do so within milliseconds, unless the kernel is stuck with them.
pub(super) const BRIEF: Duration = Duration::from_secs(3);

/// The same for a shim that lives. What it gives up on stays until someone asks for `delete`.
pub(super) const PATIENT: Duration = Duration::from_secs(60);

/// From the record of a sandbox to its claim, and much more than that.
const SETTLED: Duration = Duration::from_secs(30);

/// Goes on after an error, so that as little as possible stays; tells the first. User id and record stay until nobody can
/// use them and nothing is left to be found by them.
pub(super) fn cleanup_on(host: &Host, sandbox: &SandboxId, limit: Duration) -> Result<(), SandboxError> {
    let directory = host.directory(sandbox);
    if !directory.path.exists() {
        return Ok(());
    }
    // Processes first: nobody uses the mounts and the user id after that.
    let ended = end_processes(host, &directory, sandbox, limit);
    let files = share::remove(&directory);
    if let (Err(_), Err(error)) = (&ended, &files) {
        tracing::error!(%error, "the sandbox's share stays");
    }
    ended?;
    let released = uid::release(&host.uids(), sandbox);
    files.and(released)?;
    let files = ["owner", "state.new", "state.json", "trace.new", trace::FILE];
    remove_skeleton(&directory.path, &files).map_err(SandboxError::host("remove", &directory.path.display()))?;
    // Fails while other sandboxes of the namespace exist.
    let _ = std::fs::remove_dir(&directory.namespace);
    Ok(())
}

fn end_processes(
    host: &Host,
    directory: &SandboxDirectory,
    sandbox: &SandboxId,
    limit: Duration,
) -> Result<(), SandboxError> {
    // Without a record nothing was made but the directory.
    let Some(record) = Record::read(directory)? else { return Ok(()) };
    let cgroup = Cgroup::new(&host.cgroups, &record.cgroup, sandbox);
    cgroup.kill(limit)?;
    // Only now are its taps gone.
    let disconnected = record.netns.as_deref().map_or(Ok(()), network::remove);
    cgroup.remove(&record.made, limit).and(disconnected.map_err(SandboxError::from))
}

/// Removes what is left of sandboxes whose processes could not be killed when they were to go, and have ended since. No shim
/// holds them any more. Best effort.
pub(super) fn sweep(host: &Host) {
    for id in host.sandboxes() {
        let directory = host.directory(&id);
        let recorded = std::fs::metadata(directory.record()).and_then(|record| record.modified());
        // A younger one may be about to be claimed.
        if !recorded.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > SETTLED)) {
            continue;
        }
        let Ok(_claim) = claim(&directory, &id) else { continue };
        match cleanup_on(host, &id, Duration::ZERO) {
            Ok(()) => tracing::info!(sandbox = %id, "removed what an earlier sandbox had left"),
            Err(error) => tracing::debug!(sandbox = %id, %error, "an earlier sandbox does not end yet"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_a_dead_shim_left_long_ago_is_swept_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::below(root.path());
        let [old, claimed, young, bare] = ["old", "claimed", "young", "bare"].map(|name| SandboxId::test("ns", name));
        for id in [&old, &claimed, &young, &bare] {
            fs::create_dir_all(host.directory(id).path).unwrap();
        }
        let long_ago = std::time::SystemTime::now() - 2 * SETTLED;
        for (id, time) in [(&old, Some(long_ago)), (&claimed, Some(long_ago)), (&young, None)] {
            let directory = host.directory(id);
            Record { cgroup: "ns/pod".into(), made: Vec::new(), netns: None }.write(&directory).unwrap();
            let record = fs::File::open(directory.record()).unwrap();
            time.into_iter().for_each(|time| record.set_modified(time).unwrap());
        }
        let _claim = claim(&host.directory(&claimed), &claimed).unwrap();
        sweep(&host);
        let left = [&old, &claimed, &young, &bare].map(|id| host.directory(id).path.exists());
        assert_eq!(left, [false, true, true, true]);
    }

    #[test]
    fn a_sandbox_that_never_existed_is_fine() {
        let root = tempfile::tempdir().unwrap();
        cleanup_on(&Host::below(root.path()), &SandboxId::test("ns", "pod"), BRIEF).unwrap();
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
                &|| Record { cgroup: "ns/pod".into(), made: Vec::new(), netns: None }.write(&directory).unwrap(),
                &|| assert_eq!(uid::allocate(&host.uids(), 7, &id, &directory.owner()).unwrap(), 7),
                &|| fs::create_dir_all(directory.tree().join("web/rootfs")).unwrap(),
            ];
            make.iter().take(steps).for_each(|step| step());
            cleanup_on(&host, &id, BRIEF).unwrap();
            cleanup_on(&host, &id, BRIEF).unwrap();
            assert!(!directory.namespace.exists(), "after {steps} steps");
            let uids = fs::read_dir(host.uids()).map_or(0, |uids| uids.count());
            assert_eq!(uids, 0, "after {steps} steps");
        }
    }

    #[test]
    fn processes_that_do_not_end_keep_their_user_id_and_their_record() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::below(root.path());
        let id = SandboxId::test("ns", "pod");
        let directory = host.directory(&id);
        fs::create_dir_all(directory.tree().join("web/rootfs")).unwrap();
        fs::create_dir_all(directory.share()).unwrap();
        Record { cgroup: "ns/pod".into(), made: Vec::new(), netns: None }.write(&directory).unwrap();
        uid::allocate(&host.uids(), 7, &id, &directory.owner()).unwrap();
        let cgroup = host.cgroups.join("ns/pod/bulkhead:ns:pod");
        fs::create_dir_all(&cgroup).unwrap();
        fs::write(cgroup.join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();

        let error = cleanup_on(&host, &id, Duration::ZERO).unwrap_err();
        assert!(error.to_string().starts_with("killing the processes of the sandbox"), "{error}");
        assert!(!directory.tree().exists() && !directory.share().exists());
        assert!(host.uids().join("7").exists() && directory.record().exists());

        fs::remove_dir_all(&cgroup).unwrap();
        cleanup_on(&host, &id, BRIEF).unwrap();
        assert!(!host.uids().join("7").exists() && !directory.path.exists());
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
        cleanup_on(&host, &one, BRIEF).unwrap();
        assert!(host.directory(&other).path.exists() && host.uids().join("8").exists());
        assert!(!host.uids().join("7").exists());
    }
}
