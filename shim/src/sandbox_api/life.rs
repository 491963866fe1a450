//! The life of a pod sandbox, as decisions without effects.
//!
//! ```text
//!          create            start             microVM is gone
//!  Absent ────────► Created ────────► Ready ────────────────► Stopped
//!                      │                                         ▲
//!                      ╰──────────── start failed, stop ─────────╯
//! ```

use crate::sandbox::SandboxSpec;
use crate::task::process::Exit;
use bulkhead_config::Config;
use std::time::SystemTime;

/// What a start boots: everything that can be refused was checked.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub spec: SandboxSpec,
    pub config: Config,
}

#[derive(Clone, Debug, Default)]
pub(super) enum Life {
    #[default]
    Absent,
    Created(Box<Prepared>),
    Ready(Booted),
    Stopped {
        booted: Option<Booted>,
        exit: Exit,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Booted {
    pub at: SystemTime,
    pub pid: u32,
}

impl Life {
    pub fn booted(&self) -> Option<Booted> {
        match self {
            Self::Ready(booted) => Some(*booted),
            Self::Stopped { booted, .. } => *booted,
            Self::Absent | Self::Created(_) => None,
        }
    }

    pub fn exit(&self) -> Option<Exit> {
        match self {
            Self::Stopped { exit, .. } => Some(*exit),
            _ => None,
        }
    }

    /// The first end counts; what never was has none. Returns whether this was it.
    pub fn stop(&mut self, exit: Exit) -> bool {
        let goes_on = matches!(self, Self::Created(_) | Self::Ready(_));
        if goes_on {
            *self = Self::Stopped { booted: self.booted(), exit };
        }
        goes_on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOTED: Booted = Booted { at: SystemTime::UNIX_EPOCH, pid: 7 };

    fn exit(status: u32) -> Exit {
        Exit { status, at: SystemTime::UNIX_EPOCH }
    }

    #[test]
    fn the_first_end_counts() {
        let mut life = Life::Ready(BOOTED);
        assert!(life.stop(exit(1)) && !life.stop(exit(2)));
        assert_eq!((life.exit(), life.booted()), (Some(exit(1)), Some(BOOTED)));
    }

    #[test]
    fn what_was_never_created_has_no_end() {
        let mut life = Life::Absent;
        assert!(!life.stop(exit(1)));
        assert_eq!(life.exit(), None);
    }
}
