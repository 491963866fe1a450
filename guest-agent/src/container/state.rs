//! The life of one process, as decisions without effects.
//!
//! ```text
//!            begin_start        started
//!  Created ───────────► Starting ─────► Running
//!     │ ▲                 │    │           │
//!     │ └── start_failed ─┘    │ ended     │ ended
//!     │     (first process)    ▼           ▼
//!     └────── ended ─────────► Ended ◄─────┘
//! ```
//! A container's first process exists (in crun's hands) from `Created` on, so it can end there; an added process
//! exists from `Running` on, and one that fails to start has ended. A process may end before its start is
//! answered: `started` after `ended` changes nothing.

use crate::id::ProcessName;
use crate::{error::Error, reaper::Exit};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Created,
    Starting,
    Running,
    Ended(Exit),
}

/// What deleting a process takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It never ran: whatever exists of it is killed first.
    KillFirst,
    Forget,
}

/// What a signal does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    Send(i32),
    /// There is no process to send it to yet.
    TooEarly,
    TooLate,
}

impl State {
    /// Starting is allowed once.
    pub fn begin_start(&mut self, process: &ProcessName) -> Result<(), Error> {
        let refused = |state| Err(Error::WrongState { operation: "start", process: process.clone(), state });
        match self {
            Self::Created => {
                *self = Self::Starting;
                Ok(())
            }
            Self::Starting => refused("is being started"),
            Self::Running => refused("is running"),
            Self::Ended(_) => refused("has ended"),
        }
    }

    pub fn started(&mut self) {
        if *self == Self::Starting {
            *self = Self::Running;
        }
    }

    /// The first process is still there after a start that failed.
    pub fn start_failed(&mut self) {
        if *self == Self::Starting {
            *self = Self::Created;
        }
    }

    /// The first end counts.
    pub fn ended(&mut self, exit: Exit) {
        if !matches!(self, Self::Ended(_)) {
            *self = Self::Ended(exit);
        }
    }

    pub fn removal(self, process: &ProcessName) -> Result<Removal, Error> {
        let refused = |state| Err(Error::WrongState { operation: "delete", process: process.clone(), state });
        match self {
            Self::Created => Ok(Removal::KillFirst),
            Self::Starting => refused("is being started"),
            Self::Running => refused("is running"),
            Self::Ended(_) => Ok(Removal::Forget),
        }
    }

    /// `exists`: there is a process behind this state already.
    pub fn delivery(self, signal: i32, exists: bool) -> Delivery {
        match self {
            Self::Ended(_) => Delivery::TooLate,
            _ if !exists => Delivery::TooEarly,
            // Before its command runs, it is a pid namespace's init that handles nothing: the kernel would drop
            // every signal but this one.
            Self::Created if is_deadly(signal) => Delivery::Send(libc::SIGKILL),
            _ => Delivery::Send(signal),
        }
    }
}

/// Whether a process that doesn't handle the signal dies of it, as far as people send such signals.
fn is_deadly(signal: i32) -> bool {
    matches!(signal, libc::SIGHUP | libc::SIGINT | libc::SIGQUIT | libc::SIGABRT | libc::SIGKILL | libc::SIGTERM)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXIT: Exit = Exit { status: 3, at_ns: 1 };

    fn process() -> ProcessName {
        ProcessName::parse("web", "").unwrap()
    }

    #[test]
    fn a_process_starts_once() {
        let mut state = State::Created;
        state.begin_start(&process()).unwrap();
        let error = state.begin_start(&process()).unwrap_err().to_string();
        assert_eq!(error, "cannot start container `web`: it is being started");
        state.started();
        assert!(state.begin_start(&process()).is_err());
    }

    #[test]
    fn an_end_before_the_answer_to_start_is_kept() {
        let mut state = State::Starting;
        state.ended(EXIT);
        state.started();
        state.start_failed();
        assert_eq!(state, State::Ended(EXIT));
    }

    #[test]
    fn the_first_end_counts() {
        let mut state = State::Ended(EXIT);
        state.ended(Exit { status: 0, at_ns: 2 });
        assert_eq!(state, State::Ended(EXIT));
    }

    #[test]
    fn only_what_does_not_run_is_deleted() {
        assert_eq!(State::Created.removal(&process()).unwrap(), Removal::KillFirst);
        assert_eq!(State::Ended(EXIT).removal(&process()).unwrap(), Removal::Forget);
        assert!(State::Starting.removal(&process()).is_err());
        assert!(State::Running.removal(&process()).is_err());
    }

    #[test]
    fn a_created_container_dies_of_any_deadly_signal() {
        assert_eq!(State::Created.delivery(libc::SIGTERM, true), Delivery::Send(libc::SIGKILL));
        assert_eq!(State::Created.delivery(libc::SIGUSR1, true), Delivery::Send(libc::SIGUSR1));
        assert_eq!(State::Running.delivery(libc::SIGTERM, true), Delivery::Send(libc::SIGTERM));
    }

    #[test]
    fn signals_need_a_process() {
        assert_eq!(State::Created.delivery(libc::SIGKILL, false), Delivery::TooEarly);
        assert_eq!(State::Starting.delivery(libc::SIGKILL, false), Delivery::TooEarly);
        assert_eq!(State::Ended(EXIT).delivery(libc::SIGKILL, true), Delivery::TooLate);
    }
}
