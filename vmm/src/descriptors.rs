//! Room for descriptors, made while the process has one thread.
//!
//! Linux begins with room for 64, and makes more when it is needed. With threads it then waits until no processor of the node can still be
//! reading the old table (RCU's grace period): 10 ms, in the call that attaches a pod's first device.

use nix::fcntl::{FcntlArg, fcntl};
use std::os::fd::AsFd;

/// Four times as much. A machine with a few devices needs more than 64.
const ROOM: i32 = 256;

/// Nothing is lost without it but time, so that an error (a limit that is lower) is none.
pub fn make_room(any: impl AsFd) {
    if let Ok(last) = fcntl(any, FcntlArg::F_DUPFD_CLOEXEC(ROOM - 1)) {
        nix::unistd::close(last).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::{ROOM, make_room};
    use std::fs::{read_dir, read_link};

    #[test]
    fn there_is_room_and_nothing_is_left_open() {
        // A file that no test beside this one has open.
        let file = tempfile::NamedTempFile::new().unwrap();
        make_room(&file);
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
        assert!(size.trim().parse::<i32>().unwrap() >= ROOM, "{size}");
        let open = read_dir("/proc/self/fd").unwrap().filter_map(|fd| read_link(fd.unwrap().path()).ok());
        assert_eq!(open.filter(|path| path == file.path()).count(), 1);
    }
}
