//! Bounds of a request, checked before anything acts on it.
//!
//! The library trusts some of the numbers in a request enough to allocate what they say. The guest wrote them.

/// Longest content of one request or reply.
pub const MAX_PAYLOAD: u32 = 128 * 1024;

/// Longest packet: content, headers and names.
pub const MAX_PACKET: usize = MAX_PAYLOAD as usize + 4096;

/// `struct fuse_in_header`.
pub const IN_HEADER_LENGTH: usize = 40;

/// Length of a reply without content.
const EMPTY_REPLY: u32 = 16;

const FORGET: u32 = 2;
const READ: u32 = 15;
const GETXATTR: u32 = 22;
const LISTXATTR: u32 = 23;
const READDIR: u32 = 28;
const INTERRUPT: u32 = 36;
const NOTIFY_REPLY: u32 = 41;
const BATCH_FORGET: u32 = 42;
const READDIRPLUS: u32 = 44;

/// Where a request says how long the reply's content may be.
const fn size_offset(opcode: u32) -> Option<usize> {
    match opcode {
        // After the file handle and the offset.
        READ | READDIR | READDIRPLUS => Some(IN_HEADER_LENGTH + 16),
        GETXATTR | LISTXATTR => Some(IN_HEADER_LENGTH),
        _ => None,
    }
}

/// What is known of a request once it is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounded {
    /// Ties the reply to the request.
    pub unique: u64,
    /// Whether the client waits for a reply.
    pub replied: bool,
}

/// Checks a packet's length against what it says and cuts the sizes in it to [`MAX_PAYLOAD`]. `None` for what is no
/// request.
pub fn bound(packet: &mut [u8]) -> Option<Bounded> {
    if packet.len() < IN_HEADER_LENGTH || word(packet, 0)? as usize != packet.len() {
        return None;
    }
    let opcode = word(packet, 4)?;
    // A request without the field is refused by the library.
    let field = size_offset(opcode).and_then(|offset| packet.get_mut(offset..)?.first_chunk_mut());
    if let Some(size) = field {
        let limit = u32::from_le_bytes(*size).min(MAX_PAYLOAD);
        *size = limit.to_le_bytes();
    }
    let unique = u64::from_le_bytes(*packet.get(8..)?.first_chunk()?);
    let replied = !matches!(opcode, FORGET | BATCH_FORGET | INTERRUPT | NOTIFY_REPLY);
    Some(Bounded { unique, replied })
}

/// A reply that reports an error number.
pub fn error_reply(unique: u64, error: i32) -> [u8; EMPTY_REPLY as usize] {
    let mut reply = [0; EMPTY_REPLY as usize];
    reply[..4].copy_from_slice(&EMPTY_REPLY.to_le_bytes());
    reply[4..8].copy_from_slice(&(-error).to_le_bytes());
    reply[8..].copy_from_slice(&unique.to_le_bytes());
    reply
}

fn word(packet: &[u8], offset: usize) -> Option<u32> {
    packet.get(offset..)?.first_chunk().copied().map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        packet.extend(u32::try_from(IN_HEADER_LENGTH + body.len()).unwrap().to_le_bytes());
        packet.extend(opcode.to_le_bytes());
        packet.extend(9_u64.to_le_bytes());
        packet.resize(IN_HEADER_LENGTH, 0);
        packet.extend(body);
        packet
    }

    #[test]
    fn sizes_are_cut() {
        for opcode in [READ, READDIR, READDIRPLUS] {
            let mut packet = request(opcode, &[0xff; 40]);
            assert_eq!(bound(&mut packet), Some(Bounded { unique: 9, replied: true }));
            assert_eq!(word(&packet, 56), Some(MAX_PAYLOAD));
            assert_eq!(word(&packet, 60), Some(u32::MAX));
        }
        for opcode in [GETXATTR, LISTXATTR] {
            let mut packet = request(opcode, &[0xff; 8]);
            bound(&mut packet).unwrap();
            assert_eq!(word(&packet, 40), Some(MAX_PAYLOAD));
        }
    }

    #[test]
    fn honest_sizes_stay() {
        let mut body = [0; 40];
        body[16..20].copy_from_slice(&4096_u32.to_le_bytes());
        let mut packet = request(READ, &body);
        let before = packet.clone();
        bound(&mut packet).unwrap();
        assert_eq!(packet, before);
    }

    #[test]
    fn lengths_that_lie_are_no_requests() {
        assert_eq!(bound(&mut []), None);
        assert_eq!(bound(&mut [0; 39]), None);
        assert_eq!(bound(&mut [0; 40]), None);
        let mut long = request(3, &[]);
        long.push(0);
        assert_eq!(bound(&mut long), None);
    }

    #[test]
    fn a_request_without_its_size_is_left_to_the_library() {
        assert!(bound(&mut request(READ, &[0; 19])).is_some());
    }

    #[test]
    fn what_has_no_reply_is_known() {
        for opcode in [FORGET, BATCH_FORGET, INTERRUPT] {
            assert!(!bound(&mut request(opcode, &[0; 16])).unwrap().replied);
        }
    }
}
