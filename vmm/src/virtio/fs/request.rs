//! What the device reads of FUSE messages: lengths, and the number that ties a reply to its request.
//!
//! The guest chooses its numbers freely, duplicates included. Towards the server each request gets a tag of ours, so
//! that a reply can only ever complete the request that it answers.

use super::spec::{
    EMPTY_REPLY, IN_HEADER_LENGTH, OPCODE_BATCH_FORGET, OPCODE_FORGET, OPCODE_INTERRUPT, OUT_HEADER_LENGTH, UNIQUE,
};

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The server replies.
    Replied,
    /// The server never replies.
    Silent,
    /// Names another request by the guest's number, which the server does not know. Not forwarded: the other request
    /// takes its time.
    Interrupt,
}

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    /// The guest's number of the request.
    pub unique: u64,
}

impl Header {
    /// Parses a request; `None` if its length is not what it says.
    pub fn parse(request: &[u8]) -> Option<Self> {
        if request.len() < IN_HEADER_LENGTH || word(request, 0)? as usize != request.len() {
            return None;
        }
        let kind = match word(request, 4)? {
            OPCODE_FORGET | OPCODE_BATCH_FORGET => Kind::Silent,
            OPCODE_INTERRUPT => Kind::Interrupt,
            _ => Kind::Replied,
        };
        Some(Self { kind, unique: unique(request)? })
    }
}

/// The tag of a reply, whatever else is in it.
pub fn reply_tag(reply: &[u8]) -> Option<u64> {
    (reply.len() >= OUT_HEADER_LENGTH).then(|| unique(reply)).flatten()
}

/// Whether a reply is as long as it says.
pub fn reply_is_whole(reply: &[u8]) -> bool {
    word(reply, 0).is_some_and(|length| length as usize == reply.len())
}

/// Replaces the number of a request or reply that was found whole.
pub fn set_unique(message: &mut [u8], unique: u64) {
    if let Some(bytes) = message.get_mut(UNIQUE) {
        bytes.copy_from_slice(&unique.to_le_bytes());
    }
}

/// A reply that reports an error number.
pub fn error_reply(unique: u64, error: i32) -> [u8; OUT_HEADER_LENGTH] {
    let mut reply = [0; OUT_HEADER_LENGTH];
    reply[..4].copy_from_slice(&EMPTY_REPLY.to_le_bytes());
    reply[4..8].copy_from_slice(&(-error).to_le_bytes());
    set_unique(&mut reply, unique);
    reply
}

fn word(message: &[u8], offset: usize) -> Option<u32> {
    message.get(offset..)?.first_chunk().copied().map(u32::from_le_bytes)
}

fn unique(message: &[u8]) -> Option<u64> {
    message.get(UNIQUE)?.first_chunk().copied().map(u64::from_le_bytes)
}
