//! The main thread's loop while the machine runs.

use super::channel::{Channel, ChannelError, Descriptors};
use super::departures::{Departures, MOST_LEFT_BEHIND};
use super::{ControlError, event, reply, sentence};
use crate::machine::{Attachment, Machine};
use crate::worker::milliseconds_until;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use vmm_protocol::{Answer, Call, Device, Event, FdSlot, LayerAccess, Request, StopReason};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const CONTROL: u64 = 0;
const STOPPED: u64 = 1;
const ATTENTION: u64 = 2;
const READY: u64 = 3;
const ANSWERS: u64 = 4;
const FAILURES: u64 = 5;
const SOURCES: usize = 6;

/// Answers that other threads have found; the main thread alone writes to the control socket.
#[derive(Debug)]
pub struct Answers {
    waiting: Mutex<Vec<(u32, Result<Answer, String>)>>,
    event: EventFd,
}

impl Answers {
    pub fn new() -> io::Result<Self> {
        Ok(Self { waiting: Mutex::new(Vec::new()), event: EventFd::new(EFD_NONBLOCK)? })
    }

    pub fn push(&self, id: u32, result: Result<Answer, String>) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push((id, result));
        if let Err(error) = self.event.write(1) {
            tracing::warn!(%error, "cannot wake the main thread");
        }
    }

    pub fn take(&self) -> Vec<(u32, Result<Answer, String>)> {
        // The event first: answers that come after it raise it again. Nothing to read is fine.
        let _ = self.event.read();
        std::mem::take(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

/// What the loop goes on with.
enum Next {
    Wait,
    End,
}

#[derive(Debug)]
pub struct Session<S> {
    channel: Channel<S>,
    machine: Machine,
    answers: Arc<Answers>,
    departures: Departures,
    epoll: Epoll,
    agent_ready: bool,
}

impl<S: AsFd> Session<S> {
    pub fn new(channel: Channel<S>, machine: Machine, agent_ready: bool) -> io::Result<Self> {
        let answers = Answers::new()?;
        let epoll = Epoll::new()?;
        let sources = [
            (channel.as_raw_fd(), CONTROL),
            (machine.stop().event().as_raw_fd(), STOPPED),
            (machine.attention().event().as_raw_fd(), ATTENTION),
            (machine.ready().as_raw_fd(), READY),
            (answers.event.as_raw_fd(), ANSWERS),
            (machine.failures().event().as_raw_fd(), FAILURES),
        ];
        for (descriptor, token) in sources {
            epoll.ctl(ControlOperation::Add, descriptor, EpollEvent::new(EventSet::IN, token))?;
        }
        let departures = Departures::default();
        Ok(Self { channel, machine, answers: Arc::new(answers), departures, epoll, agent_ready })
    }

    /// Serves the machine and the shim until one of them is gone.
    pub fn serve(mut self) -> Result<(), ControlError> {
        let mut events = [EpollEvent::default(); SOURCES];
        loop {
            let timeout = self.departures.next().map_or(-1, milliseconds_until);
            let count = match self.epoll.wait(timeout, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ControlError::Wait(error)),
            };
            for ready in &events[..count] {
                if matches!(self.handle(ready.data())?, Next::End) {
                    return Ok(());
                }
            }
            for request in self.departures.expire(Instant::now()) {
                tracing::warn!(
                    left_behind = self.departures.left_behind(),
                    "a removed device does not end: its I/O hangs"
                );
                reply(&self.channel, request, Ok(Answer::Done))?;
            }
        }
    }

    fn handle(&mut self, token: u64) -> Result<Next, ControlError> {
        match token {
            CONTROL => match self.channel.receive() {
                Ok(Some((request, descriptors))) => return Ok(self.request(request, descriptors)?),
                Ok(None) => return Ok(Next::End),
                Err(error) => return Err(error.into()),
            },
            STOPPED => {
                let unknown = || StopReason::Failed("a vCPU stopped without a reason".into());
                let reason = self.machine.stop().reason().unwrap_or_else(unknown);
                event(&self.channel, Event::Stopped(reason))?;
                return Ok(Next::End);
            }
            ATTENTION => self.machine.service(),
            READY => {
                // Whatever it counts: the agent is ready once.
                let _ = self.machine.ready().read();
                if !self.agent_ready {
                    self.agent_ready = true;
                    event(&self.channel, Event::AgentReady)?;
                }
            }
            FAILURES => {
                for (device, failure) in self.machine.failures().take() {
                    event(&self.channel, Event::DeviceFailed { device, reason: failure.to_string() })?;
                }
            }
            _ => {
                for (id, result) in self.answers.take() {
                    if self.departures.may_answer(id) {
                        reply(&self.channel, id, result)?;
                    }
                }
            }
        }
        Ok(Next::Wait)
    }

    /// Carries out a request. One that fails is answered so; the machine goes on.
    fn request(&mut self, request: Request, descriptors: Descriptors) -> Result<Next, ChannelError> {
        let id = request.id;
        let result = match request.call {
            Call::Boot(_) | Call::Restore(_) => Err("machine has booted already".into()),
            Call::Snapshot { .. } if !self.machine.is_template() => Err("machine was not booted as a template".into()),
            Call::Snapshot { memory, state } => {
                let result = self.snapshot(descriptors, memory, state);
                reply(&self.channel, id, result.map(|()| Answer::Done))?;
                return Ok(Next::End);
            }
            Call::Attach(device) => self.attach(device, descriptors),
            Call::Withdraw { device } => match self.machine.withdraw(device) {
                true => Ok(Answer::Done),
                false => Err(format!("no device {} is attached", device.0)),
            },
            Call::Detach { device } => match self.machine.detach(device) {
                Some(device) => {
                    self.departures.begin(id, device, &self.answers, Instant::now());
                    return Ok(Next::Wait);
                }
                None => Err(format!("no device {} is attached", device.0)),
            },
            Call::Memory { mib } => {
                self.machine.grow(mib).map(|address| Answer::Memory { address }).map_err(|error| sentence(&error))
            }
            Call::Connect { port, stream } => match { descriptors }.take(stream) {
                Ok(stream) => {
                    let answers = Arc::clone(&self.answers);
                    let done = move |result: Result<(), _>| {
                        answers.push(id, result.map(|()| Answer::Done).map_err(|error| sentence(&error)));
                    };
                    self.machine.connector().connect(port, stream, Box::new(done));
                    return Ok(Next::Wait);
                }
                Err(error) => Err(sentence(&error)),
            },
        };
        reply(&self.channel, id, result)?;
        Ok(Next::Wait)
    }

    /// The machine is spent afterwards.
    fn snapshot(&mut self, mut descriptors: Descriptors, memory: FdSlot, state: FdSlot) -> Result<(), String> {
        let memory = descriptors.take(memory).map_err(|error| sentence(&error))?;
        let state = descriptors.take(state).map_err(|error| sentence(&error))?;
        self.machine.snapshot(&File::from(memory), &File::from(state)).map_err(|error| sentence(&error))
    }

    fn attach(&mut self, device: Device, descriptors: Descriptors) -> Result<Answer, String> {
        if self.departures.left_behind() >= MOST_LEFT_BEHIND {
            return Err(format!("{MOST_LEFT_BEHIND} removed devices hang: their disks on the node do not answer"));
        }
        let attachment = attachment(device, descriptors).map_err(|error| sentence(&error))?;
        let (device, address) = self.machine.attach(attachment).map_err(|error| sentence(&error))?;
        Ok(Answer::Attached { device, address })
    }
}

fn attachment(device: Device, mut descriptors: Descriptors) -> Result<Attachment, ChannelError> {
    Ok(match device {
        Device::Block { image, read_only, limit } => {
            Attachment::Block { image: File::from(descriptors.take(image)?), read_only, limit }
        }
        Device::Layers { parts, access } => {
            let parts = parts.into_iter().map(|part| descriptors.take(part).map(File::from));
            let parts = parts.collect::<Result<_, _>>()?;
            match access {
                LayerAccess::Disk { limit } => Attachment::Layers { parts, limit },
                LayerAccess::Memory => Attachment::LayerMemory { parts },
            }
        }
        Device::Net { tap, mac, mtu } => Attachment::Net { tap: File::from(descriptors.take(tap)?), mac, mtu },
        Device::Fs { tag, server } => Attachment::Fs { tag, server: descriptors.take(server)? },
    })
}
