//! User ids of VMMs: one for each sandbox, so that no VMM can signal, trace or read another.
//!
//! An id is taken by a file of its name, which appears together with its content (a hard link to the owner's file):
//! a crash at any point leaves either nothing or a file that names its owner.

use super::SandboxError;
use super::id::SandboxId;
use bulkhead_config::UID_COUNT;
use std::collections::HashSet;
use std::io;
use std::path::Path;

/// Takes the lowest free id from `first` on. `owner` is a path in the same file system that this writes.
pub(super) fn allocate(uids: &Path, first: u32, sandbox: &SandboxId, owner: &Path) -> Result<u32, SandboxError> {
    std::fs::create_dir_all(uids).map_err(SandboxError::host("create", &uids.display()))?;
    std::fs::write(owner, sandbox.to_string()).map_err(SandboxError::host("write", &owner.display()))?;
    let taken = taken(uids).map_err(SandboxError::host("list", &uids.display()))?;
    for uid in (first..=first.saturating_add(UID_COUNT - 1)).filter(|uid| !taken.contains(uid)) {
        let claim = uids.join(uid.to_string());
        match std::fs::hard_link(owner, &claim) {
            Ok(()) => return Ok(uid),
            // Another shim was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(SandboxError::host("create", &claim.display())(error)),
        }
    }
    Err(SandboxError::NoFreeUid { first, count: UID_COUNT })
}

/// Gives back every id of a sandbox.
pub(super) fn release(uids: &Path, sandbox: &SandboxId) -> Result<(), SandboxError> {
    let taken = match taken(uids) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        taken => taken.map_err(SandboxError::host("list", &uids.display()))?,
    };
    let name = sandbox.to_string();
    for claim in taken.iter().map(|uid| uids.join(uid.to_string())) {
        // A claim that vanishes meanwhile belonged to someone else.
        if std::fs::read_to_string(&claim).is_ok_and(|owner| owner == name) {
            std::fs::remove_file(&claim).map_err(SandboxError::host("remove", &claim.display()))?;
        }
    }
    Ok(())
}

fn taken(uids: &Path) -> io::Result<HashSet<u32>> {
    let mut taken = HashSet::new();
    for entry in std::fs::read_dir(uids)? {
        taken.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(name: &str) -> SandboxId {
        SandboxId::test("ns", name)
    }

    fn allocate(root: &Path, name: &str) -> u32 {
        super::allocate(&root.join("uids"), 1000, &sandbox(name), &root.join(name)).unwrap()
    }

    #[test]
    fn each_sandbox_gets_its_own_id() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(["a", "b", "c"].map(|name| allocate(root.path(), name)), [1000, 1001, 1002]);
    }

    #[test]
    fn a_released_id_is_free_again_and_others_stay() {
        let root = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| allocate(root.path(), name));
        release(&root.path().join("uids"), &sandbox("a")).unwrap();
        assert!(root.path().join("uids").join(b.to_string()).exists());
        assert_eq!(allocate(root.path(), "c"), a);
    }

    #[test]
    fn releasing_twice_or_nothing_is_fine() {
        let root = tempfile::tempdir().unwrap();
        release(&root.path().join("uids"), &sandbox("a")).unwrap();
        allocate(root.path(), "a");
        release(&root.path().join("uids"), &sandbox("a")).unwrap();
        release(&root.path().join("uids"), &sandbox("a")).unwrap();
    }

    #[test]
    fn concurrent_allocations_never_share_an_id() {
        let root = tempfile::tempdir().unwrap();
        let mut uids = std::thread::scope(|scope| {
            let threads = ["a", "b", "c", "d", "e", "f"].map(|name| scope.spawn(|| allocate(root.path(), name)));
            threads.map(|thread| thread.join().unwrap())
        });
        uids.sort_unstable();
        assert_eq!(uids, [1000, 1001, 1002, 1003, 1004, 1005]);
    }
}
