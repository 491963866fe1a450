//! As much of WebSocket (RFC 6455) as it takes to use containerd's streaming server.
//!
//! The peer is the node's own containerd on the loopback interface, so frames are masked with zeros, which leaves them as
//! they are, and the proof that the server speaks WebSocket is not asked for.

use crate::PATIENCE;
use std::io::{BufRead, BufReader, Read, Result, Write};
use std::net::TcpStream;

/// The most that one message may hold. containerd sends 32 KiB at a time.
const MAX_MESSAGE: u64 = 1 << 24;

const CONTINUATION: u8 = 0;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// What messages are sent with; may be cloned for a thread of its own.
#[derive(Debug)]
pub struct Sender(TcpStream);

impl Sender {
    pub fn another(&self) -> Self {
        Self(self.0.try_clone().expect("a copy of a socket"))
    }

    pub fn send(&mut self, message: &[u8]) -> Result<()> {
        self.0.write_all(&frame(BINARY, message))
    }

    pub fn close(&mut self) -> Result<()> {
        self.0.write_all(&frame(CLOSE, &[]))
    }
}

/// What messages come from.
#[derive(Debug)]
pub struct Receiver {
    stream: BufReader<TcpStream>,
}

impl Receiver {
    /// The next message; none after the last. Pings are answered on the way.
    pub fn receive(&mut self) -> Result<Option<Vec<u8>>> {
        let mut message = Vec::new();
        loop {
            let (last, operation, payload) = match read_frame(&mut self.stream) {
                // Some servers end the connection without a word.
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
                frame => frame?,
            };
            match operation {
                CLOSE => return Ok(None),
                PING => self.stream.get_mut().write_all(&frame(PONG, &payload))?,
                PONG => {}
                _ => {
                    message.extend(payload);
                    if last {
                        return Ok(Some(message));
                    }
                }
            }
        }
    }
}

/// Opens `url`, which is plain HTTP, and agrees with the server on one of `protocols`, which is returned.
pub fn open(url: &str, protocols: &[&str]) -> Result<(Sender, Receiver, String)> {
    let (host, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).ok_or_else(|| {
        let text = format!("{url} is no address of plain HTTP");
        std::io::Error::new(std::io::ErrorKind::InvalidInput, text)
    })?;
    let mut socket = TcpStream::connect(host)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let protocols = protocols.join(", ");
    // The key is any 16 bytes; the server's proof that it read them is not looked at.
    let request = format!(
        "GET /{path} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
         Sec-WebSocket-Protocol: {protocols}\r\n\r\n"
    );
    socket.write_all(request.as_bytes())?;
    let mut stream = BufReader::new(socket.try_clone()?);
    let head = read_head(&mut stream)?;
    if !head.starts_with("HTTP/1.1 101") {
        return Err(std::io::Error::other(format!("no WebSocket at {url}: {head}")));
    }
    let protocol = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-protocol").then(|| value.trim().to_owned())
    });
    Ok((Sender(socket), Receiver { stream }, protocol.unwrap_or_default()))
}

fn read_head(stream: &mut impl BufRead) -> Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head)? == 0 {
            break;
        }
    }
    Ok(head)
}

fn frame(operation: u8, payload: &[u8]) -> Vec<u8> {
    const LAST: u8 = 0x80;
    const MASKED: u8 = 0x80;
    let mut frame = vec![LAST | operation];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length @ ..126), _) => frame.push(MASKED | length),
        (_, Ok(length)) => {
            frame.push(MASKED | 126);
            frame.extend(length.to_be_bytes());
        }
        _ => {
            frame.push(MASKED | 127);
            frame.extend((payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// Whether it is its message's last frame, what it is for, and what it holds. Text counts as binary.
fn read_frame(stream: &mut impl Read) -> Result<(bool, u8, Vec<u8>)> {
    let mut head = [0; 2];
    stream.read_exact(&mut head)?;
    let length = match head[1] & 0x7f {
        126 => u64::from(u16::from_be_bytes(read_array(stream)?)),
        127 => u64::from_be_bytes(read_array(stream)?),
        length => u64::from(length),
    };
    if head[1] & 0x80 != 0 || length > MAX_MESSAGE {
        return Err(std::io::Error::other("a server's frame is masked or too long"));
    }
    let mut payload = Vec::new();
    let read = stream.take(length).read_to_end(&mut payload)?;
    if (read as u64) < length {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let operation = match head[0] & 0x0f {
        CONTINUATION | 1 => BINARY,
        operation => operation,
    };
    Ok((head[0] & 0x80 != 0, operation, payload))
}

fn read_array<const SIZE: usize>(stream: &mut impl Read) -> Result<[u8; SIZE]> {
    let mut array = [0; SIZE];
    stream.read_exact(&mut array)?;
    Ok(array)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client's frame as a server would send it: without the mask.
    fn unmasked(payload: &[u8]) -> Vec<u8> {
        let mut frame = frame(BINARY, payload);
        frame[1] &= 0x7f;
        let mask = frame.len() - payload.len() - 4;
        frame.drain(mask..mask + 4);
        frame
    }

    #[test]
    fn every_length_has_its_form() {
        for length in [0, 1, 125, 126, 255, 256, 65535, 65536, 70000] {
            let payload = crate::noise(length);
            let read = read_frame(&mut &unmasked(&payload)[..]).unwrap();
            assert_eq!(read, (true, BINARY, payload));
        }
    }

    #[test]
    fn a_frame_that_ends_early_is_no_frame() {
        let frame = unmasked(b"something");
        assert!(read_frame(&mut &frame[..frame.len() - 1]).is_err());
    }

    #[test]
    fn a_length_beyond_all_reason_is_refused() {
        let mut frame = vec![0x82, 127];
        frame.extend(u64::MAX.to_be_bytes());
        assert!(read_frame(&mut &frame[..]).is_err());
    }
}
