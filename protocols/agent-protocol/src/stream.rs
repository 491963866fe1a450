//! Framing of one stdio channel on one vsock connection to `STREAM_PORT`.
//!
//! ```text
//! shim  → agent   hello: u16 length, then the fields of `Hello`
//! agent → shim    one byte: ACCEPTED, or anything else and the connection ends
//! then frames, towards the agent for stdin, towards the shim for stdout and stderr:
//!                 u32 length (1..=MAX_PAYLOAD), payload    data
//!                 u32 zero                                 end of the channel
//! ```
//! Integers are little-endian. The end is in-band, so that a connection that breaks is never taken for a
//! channel that ended. A terminal is two channels, `Stdin` and `Stdout`.

use crate::MAX_ID;

/// Longest payload of one frame, in bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// Bytes of a frame's header.
pub const HEADER: usize = 4;

/// The agent's answer to a hello that it understood.
pub const ACCEPTED: u8 = 0;

/// Longest encoded hello, in bytes, with its length prefix.
pub const MAX_HELLO: usize = 2 + 1 + 2 + 2 * MAX_ID;

/// Which of a process's standard streams a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    Stdin,
    Stdout,
    Stderr,
}

/// First message on a stream: whose channel this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub container_id: String,
    /// Empty for the container's first process.
    pub exec_id: String,
    pub channel: Channel,
}

/// Why a stream's bytes make no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StreamError {
    #[error("stream id is {0} bytes long; the limit is {MAX_ID}")]
    IdTooLong(usize),
    #[error("stream hello is malformed")]
    MalformedHello,
    #[error("stream frame of {0} bytes; the limit is {MAX_PAYLOAD}")]
    FrameTooLong(usize),
}

impl Hello {
    /// The bytes on the wire, length prefix included.
    pub fn encode(&self) -> Result<Vec<u8>, StreamError> {
        let mut body = vec![match self.channel {
            Channel::Stdin => 0,
            Channel::Stdout => 1,
            Channel::Stderr => 2,
        }];
        for id in [&self.container_id, &self.exec_id] {
            if id.len() > MAX_ID {
                return Err(StreamError::IdTooLong(id.len()));
            }
            body.push(u8::try_from(id.len()).expect("MAX_ID fits in a byte"));
            body.extend_from_slice(id.as_bytes());
        }
        let length = u16::try_from(body.len()).expect("two ids and a tag fit");
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.append(&mut body);
        Ok(bytes)
    }

    /// Parses what follows the length prefix.
    pub fn decode(body: &[u8]) -> Result<Self, StreamError> {
        let (&channel, rest) = body.split_first().ok_or(StreamError::MalformedHello)?;
        let channel = match channel {
            0 => Channel::Stdin,
            1 => Channel::Stdout,
            2 => Channel::Stderr,
            _ => return Err(StreamError::MalformedHello),
        };
        let (container_id, rest) = decode_id(rest)?;
        let (exec_id, rest) = decode_id(rest)?;
        if !rest.is_empty() {
            return Err(StreamError::MalformedHello);
        }
        Ok(Self { container_id, exec_id, channel })
    }
}

fn decode_id(bytes: &[u8]) -> Result<(String, &[u8]), StreamError> {
    let (&length, rest) = bytes.split_first().ok_or(StreamError::MalformedHello)?;
    let length = usize::from(length);
    if length > MAX_ID || length > rest.len() {
        return Err(StreamError::MalformedHello);
    }
    let (id, rest) = rest.split_at(length);
    let id = std::str::from_utf8(id).map_err(|_| StreamError::MalformedHello)?;
    Ok((id.to_owned(), rest))
}

/// What a frame's header announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// This many payload bytes follow.
    Data(usize),
    /// The channel ended; nothing follows.
    End,
}

impl Frame {
    /// The header's bytes. `Data` lengths beyond `MAX_PAYLOAD` are the caller's mistake.
    pub fn encode(self) -> [u8; HEADER] {
        let length = match self {
            Self::Data(length) => {
                assert!((1..=MAX_PAYLOAD).contains(&length), "frames carry 1 to MAX_PAYLOAD bytes");
                u32::try_from(length).expect("MAX_PAYLOAD fits in 32 bits")
            }
            Self::End => 0,
        };
        length.to_le_bytes()
    }

    /// Parses a header from the peer.
    pub fn decode(header: [u8; HEADER]) -> Result<Self, StreamError> {
        match u32::from_le_bytes(header) as usize {
            0 => Ok(Self::End),
            length if length <= MAX_PAYLOAD => Ok(Self::Data(length)),
            length => Err(StreamError::FrameTooLong(length)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello { container_id: "web".into(), exec_id: "e1".into(), channel: Channel::Stderr }
    }

    #[test]
    fn hello_has_a_golden_encoding() {
        assert_eq!(hello().encode().unwrap(), b"\x08\x00\x02\x03web\x02e1");
    }

    #[test]
    fn hello_survives_a_round_trip() {
        let bytes = hello().encode().unwrap();
        assert_eq!(Hello::decode(&bytes[2..]).unwrap(), hello());
    }

    #[test]
    fn longest_hello_fits_the_limit() {
        let id = "x".repeat(MAX_ID);
        let hello = Hello { container_id: id.clone(), exec_id: id, channel: Channel::Stdin };
        assert_eq!(hello.encode().unwrap().len(), MAX_HELLO);
    }

    #[test]
    fn malformed_hellos_are_refused() {
        let cases: [&[u8]; 6] = [b"", b"\x03\0\0", b"\0\x05web\0", b"\0\x01\xff\0", b"\0\x01a\0junk", b"\0\x01a"];
        for bytes in cases {
            assert_eq!(Hello::decode(bytes), Err(StreamError::MalformedHello), "{bytes:?}");
        }
    }

    #[test]
    fn frames_have_golden_encodings() {
        assert_eq!(Frame::Data(258).encode(), [2, 1, 0, 0]);
        assert_eq!(Frame::End.encode(), [0, 0, 0, 0]);
    }

    #[test]
    fn a_frame_beyond_the_limit_is_refused() {
        assert_eq!(Frame::decode([1, 0, 1, 0]), Err(StreamError::FrameTooLong(65537)));
    }
}
