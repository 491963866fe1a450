//! The process: what the shim asks over the control socket, and the main thread's loop.
//!
//! ```text
//!  start ──► first packet must be Boot ──► jail ──► machine ──► vCPUs ──► confined ──► Done
//!                                                                                     │
//!  exit ◄── Stopped sent ◄── guest stopped ◄── loop: attach, detach, connect ◄────────┘
//!   ▲                                           │
//!   └──────────── shim gone (end of file) ◄─────┘
//! ```

mod boot;
mod channel;
mod departures;
mod session;

pub use boot::BootError;
pub use channel::{Channel, ChannelError, Descriptors};
pub use departures::MOST_LEFT_BEHIND;

use crate::moments::Moments;
use session::Session;
use std::os::fd::AsFd;
use vmm_protocol::{Answer, Call, Event, MAX_ERROR, Message, Reply, Stage};

/// Why the process ends before its machine stopped.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("control socket failed")]
    Channel(#[from] ChannelError),
    #[error("first request is neither boot nor restore")]
    NotBoot,
    #[error("machine does not boot")]
    Boot(#[from] BootError),
    #[error("main thread cannot wait for events")]
    Wait(#[source] std::io::Error),
}

/// Serves the shim until the machine stops or the shim goes away; both are a good end.
pub fn run<S: AsFd>(socket: S) -> Result<(), ControlError> {
    let channel = Channel::new(socket);
    let Some((request, descriptors)) = channel.receive()? else { return Ok(()) };
    let mut moments = Moments::default();
    moments.note(Stage::Program);
    // The agent of a restored machine has said that it is ready, in the template.
    let (made, agent_ready) = match request.call {
        Call::Boot(machine) => (boot::boot(&machine, descriptors, &mut moments), false),
        Call::Restore(restore) => (boot::restore(&restore, descriptors, &mut moments), true),
        _ => {
            reply(&channel, request.id, Err(ControlError::NotBoot.to_string()))?;
            return Err(ControlError::NotBoot);
        }
    };
    match made {
        Ok(machine) => {
            reply(&channel, request.id, Ok(Answer::Running { moments: moments.into_list() }))?;
            Session::new(channel, machine, agent_ready).map_err(ControlError::Wait)?.serve()
        }
        Err(error) => {
            reply(&channel, request.id, Err(sentence(&error)))?;
            Err(error.into())
        }
    }
}

fn reply<S: AsFd>(channel: &Channel<S>, id: u32, result: Result<Answer, String>) -> Result<(), ChannelError> {
    channel.send(&Message::Reply(Reply { id, result }))
}

fn event<S: AsFd>(channel: &Channel<S>, event: Event) -> Result<(), ChannelError> {
    channel.send(&Message::Event(event))
}

/// An error with its causes, short enough for a message.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    if let Some((end, _)) = text.char_indices().find(|(at, char)| at + char.len_utf8() > MAX_ERROR) {
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_error_is_cut_at_a_character() {
        let text = sentence(&std::io::Error::other("ü".repeat(MAX_ERROR)));
        assert_eq!(text.len(), MAX_ERROR);
    }
}
