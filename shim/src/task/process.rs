//! The life of one process as containerd sees it: a container's first process, or one that `exec` added.
//!
//! ```text
//!             start            started            pause
//!  Created ──────────► Starting ───────► Running ────────► Paused
//!     ▲ ╲   start failed   │                │ ▲    resume    │
//!     ╰──╲─────────────────╯                │ ╰──────────────╯
//!         ╲ exited (killed, VM gone)        │ exited         │ exited
//!          ╲────────────────────────────────┴────────────────╯
//!                           │
//!                           ▼
//!                        Stopped
//! ```
//!
//! While `Starting`, an exit is not taken in: the start event must come first, so the reporter waits.

use std::time::SystemTime;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, or 128 + signal.
    pub status: u32,
    pub at: SystemTime,
}

impl Exit {
    /// Killed with SIGKILL: by someone, or with its microVM.
    pub const KILLED: u32 = 128 + 9;

    pub fn now(status: u32) -> Self {
        Self { status, at: SystemTime::now() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Created,
    Starting,
    Running,
    Paused,
    Stopped(Exit),
}

/// What happens to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Start,
    Started,
    StartFailed,
    Paused,
    Resumed,
    Exited(Exit),
}

/// What is asked about a process, without changing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// May it be sent a signal?
    Signal,
    /// May it be paused?
    Pause,
    Resume,
    /// May its resources be read or changed, processes be added to its container?
    Use,
    /// May an added process start beside it?
    Join,
    /// May it be forgotten?
    Delete,
}

/// Why something can't be done now; reads after the name of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("has been started before")]
    AlreadyStarted,
    #[error("has ended")]
    AlreadyStopped,
    #[error("is still running")]
    StillRunning,
    #[error("is not running")]
    NotRunning,
    #[error("is not paused")]
    NotPaused,
}

impl Phase {
    pub fn after(self, change: Change) -> Result<Self, Refusal> {
        match (self, change) {
            (Self::Created, Change::Start) => Ok(Self::Starting),
            (Self::Stopped(_), Change::Start) => Err(Refusal::NotRunning),
            (_, Change::Start) => Err(Refusal::AlreadyStarted),
            (Self::Starting, Change::Started) => Ok(Self::Running),
            (Self::Starting, Change::StartFailed) => Ok(Self::Created),
            (Self::Running, Change::Paused) => Ok(Self::Paused),
            (Self::Paused, Change::Resumed) => Ok(Self::Running),
            (Self::Stopped(_), _) => Err(Refusal::AlreadyStopped),
            (Self::Starting, Change::Exited(_)) => Err(Refusal::StillRunning),
            (_, Change::Exited(exit)) => Ok(Self::Stopped(exit)),
            (_, Change::Resumed) => Err(Refusal::NotPaused),
            (_, Change::Started | Change::StartFailed | Change::Paused) => Err(Refusal::NotRunning),
        }
    }

    pub fn allows(self, question: Question) -> Result<(), Refusal> {
        match (question, self) {
            (Question::Signal, Self::Stopped(_)) => Err(Refusal::AlreadyStopped),
            (Question::Signal, _) => Ok(()),
            (Question::Pause | Question::Join, Self::Running) | (Question::Resume, Self::Paused) => Ok(()),
            (Question::Resume, _) => Err(Refusal::NotPaused),
            (Question::Use, Self::Running | Self::Paused | Self::Created | Self::Starting) => Ok(()),
            (Question::Pause | Question::Use | Question::Join, _) => Err(Refusal::NotRunning),
            (Question::Delete, Self::Created | Self::Stopped(_)) => Ok(()),
            (Question::Delete, _) => Err(Refusal::StillRunning),
        }
    }

    pub fn exit(self) -> Option<Exit> {
        match self {
            Self::Stopped(exit) => Some(exit),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXIT: Exit = Exit { status: 3, at: SystemTime::UNIX_EPOCH };
    const STOPPED: Phase = Phase::Stopped(EXIT);
    const PHASES: [Phase; 5] = [Phase::Created, Phase::Starting, Phase::Running, Phase::Paused, STOPPED];
    const CHANGES: [Change; 6] = [
        Change::Start,
        Change::Started,
        Change::StartFailed,
        Change::Paused,
        Change::Resumed,
        Change::Exited(Exit { status: 9, at: SystemTime::UNIX_EPOCH }),
    ];

    #[test]
    fn the_usual_life_is_accepted() {
        let life = [Change::Start, Change::Started, Change::Paused, Change::Resumed, Change::Exited(EXIT)];
        let end = life.into_iter().try_fold(Phase::Created, Phase::after);
        assert_eq!(end, Ok(STOPPED));
    }

    #[test]
    fn nothing_changes_a_stopped_process() {
        for change in CHANGES {
            assert!(STOPPED.after(change).is_err(), "{change:?}");
        }
    }

    #[test]
    fn a_second_start_is_refused_in_every_phase() {
        for phase in PHASES {
            assert_eq!(phase.after(Change::Start).is_ok(), phase == Phase::Created, "{phase:?}");
        }
    }

    #[test]
    fn an_exit_waits_for_the_start_to_be_told() {
        assert!(Phase::Starting.after(Change::Exited(EXIT)).is_err());
        for phase in [Phase::Created, Phase::Running, Phase::Paused] {
            assert_eq!(phase.after(Change::Exited(EXIT)), Ok(STOPPED));
        }
    }

    #[test]
    fn a_failed_start_can_be_deleted() {
        let phase = Phase::Created.after(Change::Start).unwrap().after(Change::StartFailed).unwrap();
        assert_eq!(phase.allows(Question::Delete), Ok(()));
    }

    #[test]
    fn questions_have_one_answer_each() {
        use Question::{Delete, Join, Pause, Resume, Signal, Use};
        // created, starting, running, paused, stopped
        let table = [
            (Signal, [true, true, true, true, false]),
            (Pause, [false, false, true, false, false]),
            (Resume, [false, false, false, true, false]),
            (Use, [true, true, true, true, false]),
            (Join, [false, false, true, false, false]),
            (Delete, [true, false, false, false, true]),
        ];
        for (question, answers) in table {
            assert_eq!(PHASES.map(|phase| phase.allows(question).is_ok()), answers, "{question:?}");
        }
    }

    /// Every sequence of four changes: only `Exited` stops, and what is stopped keeps its exit.
    #[test]
    fn only_an_exit_stops_and_only_once() {
        for sequence in 0..CHANGES.len().pow(4) {
            let mut phase = Phase::Created;
            let mut first = None;
            let mut rest = sequence;
            for _ in 0..4 {
                let change = CHANGES[rest % CHANGES.len()];
                rest /= CHANGES.len();
                if let Ok(next) = phase.after(change) {
                    if let Change::Exited(exit) = change {
                        assert!(first.replace(exit).is_none());
                    }
                    phase = next;
                }
            }
            assert_eq!(phase.exit(), first);
        }
    }
}
