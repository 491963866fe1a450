//! Where a pod's volumes are in its share: one place for each tree of the node, however many containers mount it.
//!
//! Two places of one tree would be two files to the guest's kernel: a lock that one container takes would not hold in
//! another, and pages that both map would differ.

use super::super::file_id::FileId;
use super::super::host::SandboxDirectory;
use super::super::mount::{DetachedTree, TreeOptions, unmount_all};
use super::super::policy::Resolved;
use crate::identifier::Identifier;
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The directory of the places. No container has such a name.
pub(super) const VOLUMES: &str = ".volumes";

/// What containers share a place for: the same directory or file, seen through the same mount of the node, with the
/// same restrictions.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    file: FileId,
    is_directory: bool,
    mount: String,
    options: TreeOptions,
}

impl Key {
    /// Asks the file system of `source`, which may hang.
    pub fn of(source: &Resolved, tree: &DetachedTree, options: TreeOptions) -> io::Result<Self> {
        let metadata = tree.metadata()?;
        let (file, is_directory) = (FileId::of(&metadata), metadata.is_dir());
        Ok(Self { file, is_directory, mount: source.mount_id()?, options })
    }
}

#[derive(Debug)]
struct Place {
    number: u64,
    /// Never empty.
    users: HashSet<Identifier>,
}

#[derive(Debug, Default)]
struct State {
    /// Numbers are not used twice: the guest may remember what was at one.
    next: u64,
    places: HashMap<Key, Place>,
}

/// The places of one pod. Clones are handles to the same.
#[derive(Clone, Debug)]
pub(in super::super) struct Places {
    tree: PathBuf,
    share: PathBuf,
    state: Arc<Mutex<State>>,
}

impl Places {
    pub fn new(directory: &SandboxDirectory) -> Self {
        let of = |path: PathBuf| path.join(VOLUMES);
        Self { tree: of(directory.tree()), share: of(directory.share()), state: Arc::default() }
    }

    /// Mounts a copy of `source`, unless it is there. Returns the place's number.
    pub(super) fn take(&self, user: &Identifier, key: Key, tree: DetachedTree) -> io::Result<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = state.places.get_mut(&key) {
            place.users.insert(user.clone());
            return Ok(place.number);
        }
        let number = state.next;
        state.next += 1;
        std::fs::create_dir_all(&self.tree)?;
        make_place(&self.tree.join(number.to_string()), key.is_directory)?;
        tree.attach(&self.share.join(number.to_string()))?;
        state.places.insert(key, Place { number, users: [user.clone()].into() });
        Ok(number)
    }

    /// Takes away what nobody but `user` has used. Goes on after an error; tells the first.
    pub(super) fn release(&self, user: &Identifier) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unused = Vec::new();
        state.places.retain(|_, place| {
            place.users.remove(user);
            if place.users.is_empty() {
                unused.push(place.number.to_string());
            }
            !place.users.is_empty()
        });
        let remove = |number: &String| {
            unmount_all(&self.share.join(number)).and_then(|()| remove_place(&self.tree.join(number)))
        };
        unused.iter().map(remove).fold(Ok(()), Result::and)
    }
}

/// What is mounted must be of the same kind as what it is mounted on.
pub(super) fn make_place(place: &Path, directory: bool) -> io::Result<()> {
    if directory { std::fs::create_dir(place) } else { std::fs::File::create_new(place).map(drop) }
}

fn remove_place(place: &Path) -> io::Result<()> {
    match std::fs::remove_dir(place) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => std::fs::remove_file(place),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::host::Host;
    use super::super::super::id::SandboxId;
    use super::super::{make, remove};
    use super::*;

    const SHARED: TreeOptions = TreeOptions { recursive: true, read_only: false, follows_source: false };

    struct Pod {
        root: tempfile::TempDir,
        directory: SandboxDirectory,
        places: Places,
    }

    /// `None`, and a skip that can be counted, for who may not mount.
    fn pod() -> Option<Pod> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: mounting needs root");
            return None;
        }
        let root = tempfile::tempdir().unwrap();
        let directory = Host::below(root.path()).directory(&SandboxId::test("ns", "pod"));
        std::fs::create_dir_all(&directory.path).unwrap();
        make(&directory).unwrap();
        let places = Places::new(&directory);
        Some(Pod { root, directory, places })
    }

    impl Pod {
        fn source(&self, name: &str) -> PathBuf {
            let path = self.root.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            path
        }

        fn take(&self, user: &str, source: &Path, options: TreeOptions) -> u64 {
            let source = Resolved::open(source).unwrap();
            let tree = DetachedTree::copy(&source, options).unwrap();
            let key = Key::of(&source, &tree, options).unwrap();
            self.places.take(&user.parse().unwrap(), key, tree).unwrap()
        }

        fn release(&self, user: &str) {
            self.places.release(&user.parse().unwrap()).unwrap();
        }

        fn shows(&self, number: u64, name: &str) -> bool {
            self.directory.share().join(VOLUMES).join(number.to_string()).join(name).exists()
        }
    }

    impl Drop for Pod {
        fn drop(&mut self) {
            remove(&self.directory).unwrap();
        }
    }

    #[test]
    fn a_tree_has_one_place_until_its_last_user_goes() {
        let Some(pod) = pod() else { return };
        let source = pod.source("data");
        std::fs::write(source.join("file"), "x").unwrap();
        let number = pod.take("web", &source, SHARED);
        assert_eq!(pod.take("web", &source, SHARED), number);
        assert_eq!(pod.take("db", &source.join("../data"), SHARED), number);
        pod.release("web");
        assert!(pod.shows(number, "file"));
        pod.release("db");
        pod.release("db");
        assert!(!pod.shows(number, ""));
        assert_ne!(pod.take("web", &source, SHARED), number);
    }

    #[test]
    fn others_have_places_of_their_own() {
        let Some(pod) = pod() else { return };
        let source = pod.source("data");
        let number = pod.take("web", &source, SHARED);
        let read_only = pod.take("db", &source, TreeOptions { read_only: true, ..SHARED });
        assert_ne!(read_only, number);
        assert_ne!(pod.take("db", &pod.source("other"), SHARED), number);
        let file = pod.root.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_ne!(pod.take("db", &file, SHARED), number);
        // The same directory by another mount, which may have restrictions.
        let bound = pod.source("bound");
        nix::mount::mount(Some(&source), &bound, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>).unwrap();
        let by_mount = pod.take("db", &bound, SHARED);
        unmount_all(&bound).unwrap();
        assert_ne!(by_mount, number);
        pod.release("db");
        assert!(pod.shows(number, "") && !pod.shows(read_only, ""));
    }
}
