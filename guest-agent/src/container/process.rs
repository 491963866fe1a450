//! One process of a container: its state, its streams, and those who wait for its end.

use super::state::{Delivery, Removal, State};
use crate::error::Error;
use crate::id::ProcessName;
use crate::reaper::{Child, Exit};
use crate::stdio::{Stdio, Written};
use std::sync::{Mutex, MutexGuard};
use tokio::sync::watch;

#[derive(Debug)]
pub struct Process {
    pub name: ProcessName,
    pub stdio: Stdio,
    inner: Mutex<Inner>,
    end: watch::Sender<Option<End>>,
}

/// How a process ended, and what it had written by then.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub exit: Exit,
    pub written: Written,
}

#[derive(Debug)]
struct Inner {
    state: State,
    child: Option<Child>,
}

impl Process {
    /// `child`: the process behind a container that crun has created.
    pub fn new(name: ProcessName, stdio: Stdio, child: Option<Child>) -> Self {
        let inner = Mutex::new(Inner { state: State::Created, child });
        Self { name, stdio, inner, end: watch::channel(None).0 }
    }

    pub fn begin_start(&self) -> Result<(), Error> {
        self.inner().state.begin_start(&self.name)
    }

    /// `child`: what the start has made, if it was not there before.
    pub fn started(&self, child: Option<Child>) {
        let mut inner = self.inner();
        if child.is_some() {
            inner.child = child;
        }
        inner.state.started();
    }

    pub fn start_failed(&self) {
        self.inner().state.start_failed();
    }

    /// Records the end and tells everyone who waits.
    pub fn ended(&self, exit: Exit) {
        self.inner().state.ended(exit);
        let end = End { exit, written: self.stdio.written() };
        self.end.send_if_modified(|told| told.is_none() && told.replace(end).is_none());
    }

    /// The end, whenever it is or was. The waiter doesn't keep the process: deleted without an end, it has none.
    pub fn end(&self) -> impl Future<Output = Option<End>> + Send + use<> {
        let mut end = self.end.subscribe();
        async move { *end.wait_for(Option::is_some).await.ok()? }
    }

    pub fn removal(&self) -> Result<Removal, Error> {
        self.inner().state.removal(&self.name)
    }

    /// The pid in the guest, once there is one.
    pub fn pid(&self) -> Option<u32> {
        self.inner().child.as_ref().map(Child::pid)
    }

    /// Whether it has ended, even if that is not told yet.
    pub fn is_gone(&self) -> bool {
        let inner = self.inner();
        matches!(inner.state, State::Ended(_)) || inner.child.as_ref().is_some_and(Child::has_ended)
    }

    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        let inner = self.inner();
        let early = || Error::WrongState { operation: "signal", process: self.name.clone(), state: "is not started" };
        let delivered = match (inner.state.delivery(signal, inner.child.is_some()), &inner.child) {
            (Delivery::Send(signal), Some(child)) => {
                child.signal(signal).map_err(Error::system("signal", &self.name))?
            }
            (Delivery::TooLate, _) => false,
            (Delivery::TooEarly | Delivery::Send(_), _) => return Err(early()),
        };
        if delivered { Ok(()) } else { Err(Error::Ended(self.name.clone())) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }
}
