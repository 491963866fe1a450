//! Device threads: one epoll loop each, confined by the seccomp filter of its kind.
//!
//! A worker owns its handler, and with it the queues, from [`Worker::spawn`] to [`Worker::stop`], which gives
//! the handler back. There is no lock between a device and its queues.

use crate::jail::ThreadKind;
use std::cell::Cell;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::Instant;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Token of the worker's own stop event; handlers choose theirs below it.
const STOP: u64 = u64::MAX;

/// Events taken from the kernel at once.
const BATCH: usize = 16;

/// What epoll is to wait for at most. Rounded up: a wait that ends early would only be waited for again.
pub fn milliseconds_until(moment: Instant) -> i32 {
    let rest = moment.saturating_duration_since(Instant::now()).as_nanos().div_ceil(1_000_000);
    i32::try_from(rest).unwrap_or(i32::MAX)
}

/// The descriptors that a worker waits for.
#[derive(Debug)]
pub struct Watch {
    epoll: Epoll,
    stopping: Arc<AtomicBool>,
    paused_until: Cell<Option<Instant>>,
}

impl Watch {
    /// Somebody waits for this thread to end: nothing new should be begun.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Has [`Handler::resume`] called then; the handler leaves its work alone meanwhile.
    pub fn pause_until(&self, moment: Instant) {
        self.paused_until.set(Some(moment));
    }

    pub fn is_paused(&self) -> bool {
        self.paused_until.get().is_some()
    }

    /// How long to wait for events: until the pause ends, or for ever.
    fn timeout(&self) -> i32 {
        self.paused_until.get().map_or(-1, milliseconds_until)
    }

    /// Whether a pause is over, told once.
    fn takes_pauses_end(&self) -> bool {
        let over = self.paused_until.get().is_some_and(|moment| moment <= Instant::now());
        if over {
            self.paused_until.set(None);
        }
        over
    }

    pub fn add(&self, descriptor: &impl AsRawFd, events: EventSet, token: u64) -> io::Result<()> {
        self.control(ControlOperation::Add, descriptor.as_raw_fd(), events, token)
    }

    pub fn modify(&self, descriptor: &impl AsRawFd, events: EventSet, token: u64) -> io::Result<()> {
        self.control(ControlOperation::Modify, descriptor.as_raw_fd(), events, token)
    }

    pub fn remove(&self, descriptor: &impl AsRawFd) -> io::Result<()> {
        self.control(ControlOperation::Delete, descriptor.as_raw_fd(), EventSet::empty(), 0)
    }

    fn control(&self, operation: ControlOperation, descriptor: RawFd, events: EventSet, token: u64) -> io::Result<()> {
        self.epoll.ctl(operation, descriptor, EpollEvent::new(events, token))
    }
}

/// A device's part that runs on its own thread.
pub trait Handler: Send + 'static {
    /// Adds what the handler waits for. Also the place to process what was queued before the start.
    fn begin(&mut self, watch: &Watch) -> io::Result<()>;

    /// Reacts to a descriptor. `Break` ends the worker: the backend is gone and the device stays silent.
    fn handle(&mut self, token: u64, events: EventSet, watch: &Watch) -> ControlFlow<()>;

    /// Goes on after a pause. `Break` as in [`Self::handle`].
    fn resume(&mut self, _watch: &Watch) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// Completes what is in flight; called once, before the handler is given back.
    fn end(&mut self) {}
}

/// A running device thread.
#[derive(Debug)]
pub struct Worker<H> {
    thread: JoinHandle<H>,
    stop: EventFd,
    stopping: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
}

impl<H: Handler> Worker<H> {
    /// Starts a thread of `kind`, which is also the thread's name.
    pub fn spawn(kind: ThreadKind, handler: H) -> io::Result<Self> {
        Self::spawn_telling(kind, handler, Waker::noop().clone())
    }

    /// The same, and `waker` is woken when the thread ends.
    pub fn spawn_telling(kind: ThreadKind, mut handler: H, waker: Waker) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let stopping = Arc::new(AtomicBool::new(false));
        let ended = Arc::new(AtomicBool::new(false));
        let at_end = Arc::clone(&ended);
        let watch = Watch { epoll: Epoll::new()?, stopping: Arc::clone(&stopping), paused_until: Cell::new(None) };
        watch.add(&stop, EventSet::IN, STOP)?;
        let thread = std::thread::Builder::new().name(kind.name().into()).stack_size(256 * 1024).spawn(move || {
            if let Err(error) = crate::jail::confine_thread(kind) {
                // An unconfined device thread must never see guest memory.
                tracing::error!(thread = kind.name(), %error, "cannot confine a device thread");
                std::process::abort();
            }
            run(&mut handler, &watch, kind);
            handler.end();
            at_end.store(true, Ordering::Release);
            waker.wake();
            handler
        })?;
        Ok(Self { thread, stop, stopping, ended })
    }

    /// Asks the thread to end, without waiting for it. True when it has.
    pub fn request_stop(&self) -> io::Result<bool> {
        if !self.stopping.swap(true, Ordering::Relaxed) {
            self.stop.write(1)?;
        }
        Ok(self.ended.load(Ordering::Acquire))
    }

    /// Ends the thread and returns its handler.
    pub fn stop(self) -> io::Result<H> {
        self.request_stop()?;
        self.thread.join().map_err(|_| io::Error::other("a device thread panicked"))
    }
}

fn run(handler: &mut impl Handler, watch: &Watch, kind: ThreadKind) {
    if let Err(error) = handler.begin(watch) {
        crate::guest_warn!(thread = kind.name(), %error, "device thread cannot begin");
        return;
    }
    let mut events = [EpollEvent::default(); BATCH];
    loop {
        let count = match watch.epoll.wait(watch.timeout(), &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                tracing::error!(thread = kind.name(), %error, "device thread cannot wait");
                return;
            }
        };
        for event in &events[..count] {
            if event.data() == STOP {
                return;
            }
            if handler.handle(event.data(), event.event_set(), watch).is_break() {
                return;
            }
        }
        if watch.takes_pauses_end() && handler.resume(watch).is_break() {
            return;
        }
    }
}
