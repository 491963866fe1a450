//! How many files the guest's kernel may remember.
//!
//! For each file that the guest was told of, the server keeps a descriptor, until the guest forgets the file: memory of
//! the node (docs/operating.md) that a guest takes by looking, and gives back when it likes. So the number is bounded.
//! At the bound a file that is known still works, and names that lead to another one give `ENFILE`; the guest goes on
//! once it has forgotten something, which its agent sees to long before.
//!
//! The library counts as well but does not tell.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most files that the guest may remember, and half of what may be open.
pub const MOST: usize = 65_536;

#[derive(Debug)]
pub struct Remembered {
    most: usize,
    /// How often the guest was told of each inode.
    told: Mutex<HashMap<u64, u64>>,
}

impl Remembered {
    /// For a server that may have so many files open. The other half is for those that processes of the guest open.
    pub fn within(open_files: u64) -> Self {
        let half = usize::try_from(open_files / 2).unwrap_or(MOST);
        Self { most: half.min(MOST), told: Mutex::default() }
    }

    /// Whether a file more may be remembered. Requests under way at once may exceed the bound by their number.
    pub fn has_room(&self) -> bool {
        self.told().len() < self.most
    }

    /// Whether there is room for what nobody has asked for: the entries of a directory that is listed. A walk over a tree
    /// would come to the bound sooner than the guest's agent can look.
    pub fn has_plenty(&self) -> bool {
        self.told().len() < self.most / 2
    }

    /// The guest is told of `inode`, once more or for the first time.
    pub fn add(&self, inode: u64) {
        let mut told = self.told();
        let times = told.entry(inode).or_default();
        *times = times.saturating_add(1);
    }

    /// The same, unless the inode is new and there is no room for it; then false.
    pub fn add_if_room(&self, inode: u64) -> bool {
        let mut told = self.told();
        let room = told.len() < self.most;
        match told.entry(inode) {
            Entry::Occupied(mut known) => *known.get_mut() = known.get().saturating_add(1),
            Entry::Vacant(new) if room => {
                new.insert(1);
            }
            Entry::Vacant(_) => return false,
        }
        true
    }

    /// The guest takes back that it was told of `inode`, `times` times.
    pub fn remove(&self, inode: u64, times: u64) {
        if let Entry::Occupied(mut known) = self.told().entry(inode) {
            match known.get().checked_sub(times) {
                None | Some(0) => {
                    known.remove();
                }
                Some(left) => *known.get_mut() = left,
            }
        }
    }

    /// The guest has forgotten everything.
    pub fn clear(&self) {
        self.told().clear();
    }

    fn told(&self) -> MutexGuard<'_, HashMap<u64, u64>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_file_needs_no_room() {
        let remembered = Remembered::within(4);
        assert!(remembered.has_plenty() && remembered.add_if_room(10));
        assert!(!remembered.has_plenty() && remembered.add_if_room(11));
        assert!(!remembered.has_room());
        assert!(!remembered.add_if_room(12));
        assert!(remembered.add_if_room(10));
    }

    #[test]
    fn room_is_there_again_when_a_file_is_forgotten_as_often_as_it_was_told() {
        let remembered = Remembered::within(2);
        remembered.add(10);
        remembered.add(10);
        remembered.remove(10, 1);
        assert!(!remembered.has_room());
        remembered.remove(10, 1);
        assert!(remembered.has_room());
    }

    #[test]
    fn a_guest_that_forgets_more_than_it_knows_harms_nobody() {
        let remembered = Remembered::within(4);
        remembered.add(10);
        remembered.add(11);
        remembered.remove(10, u64::MAX);
        remembered.remove(99, 1);
        assert!(remembered.add_if_room(12));
        assert!(!remembered.has_room());
    }
}
