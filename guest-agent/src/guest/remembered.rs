//! Has the kernel forget files of the share that nobody uses.
//!
//! The file server keeps each file open that the guest's kernel remembers: memory of the node, for which the pod has
//! overhead up to a point (docs/operating.md), and a number with a bound. A kernel forgets when its memory is short,
//! in a guest with enough of it never. So one that remembers many files more than it did when there was nothing left to
//! forget is told to.

use std::path::Path;
use std::time::Duration;

/// So many are worth it. The overhead of the usual RuntimeClass holds a few more.
const MANY: u64 = 8192;

const STACK: usize = 64 << 10;

/// Between two looks while nothing goes on, and while the number grows.
const QUIET: Duration = Duration::from_secs(1);
const BUSY: Duration = Duration::from_millis(100);

/// How much later than that a look may be, to go with another timer: an idle guest does not wake up for it. One that works has a timer
/// every few milliseconds.
const LATER_NS: u64 = 3_000_000_000;

/// Watches from now on, in a thread of its own: how late a timer may be is a thread's matter.
pub fn watch() {
    let thread = std::thread::Builder::new().name("remembered".to_owned()).stack_size(STACK);
    if let Err(error) = thread.spawn(look_on) {
        tracing::warn!(%error, "cannot watch remembered files");
    }
}

fn look_on() {
    if let Err(error) = nix::sys::prctl::set_timerslack(LATER_NS) {
        tracing::warn!(%error, "cannot look at remembered files with other timers");
    }
    let mut watch = Watch::default();
    while let Some(files) = remembered() {
        match watch.look(files) {
            Look::Wait(interval) => std::thread::sleep(interval),
            Look::Forget => {
                forget();
                let Some(files) = remembered() else { return };
                watch.forgotten(files);
                std::thread::sleep(BUSY);
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Look {
    Wait(Duration),
    Forget,
}

/// What is in use, and thus cannot be forgotten: the least that was ever seen since.
#[derive(Debug, Default)]
struct Watch {
    in_use: Option<u64>,
}

impl Watch {
    fn look(&mut self, files: u64) -> Look {
        let in_use = self.in_use.map_or(files, |before| before.min(files));
        self.in_use = Some(in_use);
        match files - in_use {
            more if more > MANY => Look::Forget,
            more if more > MANY / 2 => Look::Wait(BUSY),
            _ => Look::Wait(QUIET),
        }
    }

    fn forgotten(&mut self, left: u64) {
        self.in_use = Some(left);
    }
}

/// How many files the kernel remembers, of all file systems.
fn remembered() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/sys/fs/inode-nr");
    let number = text.as_deref().ok().and_then(|text| text.split_whitespace().next()?.parse().ok());
    if number.is_none() {
        tracing::warn!("cannot read how many files the kernel remembers");
    }
    number
}

/// Twice: an entry that was used since the last time only loses the mark that says so.
fn forget() {
    let write = || std::fs::write(Path::new("/proc/sys/vm/drop_caches"), "2");
    if let Err(error) = (0..2).try_for_each(|_| write()) {
        tracing::warn!(%error, "cannot have the kernel forget files");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_new_files_are_forgotten() {
        let mut watch = Watch::default();
        assert_eq!(watch.look(1000), Look::Wait(QUIET));
        assert_eq!(watch.look(1000 + MANY / 2), Look::Wait(QUIET));
        assert_eq!(watch.look(1000 + MANY), Look::Wait(BUSY));
        assert_eq!(watch.look(1001 + MANY), Look::Forget);
    }

    #[test]
    fn files_in_use_are_not_tried_again_and_again() {
        let mut watch = Watch::default();
        watch.look(1000);
        assert_eq!(watch.look(50_000), Look::Forget);
        watch.forgotten(40_000);
        assert_eq!(watch.look(40_001), Look::Wait(QUIET));
        assert_eq!(watch.look(40_001 + MANY), Look::Forget);
    }

    #[test]
    fn files_that_are_no_longer_in_use_make_no_room_for_others() {
        let mut watch = Watch::default();
        watch.look(50_000);
        watch.look(2000);
        assert_eq!(watch.look(2001 + MANY), Look::Forget);
    }
}
