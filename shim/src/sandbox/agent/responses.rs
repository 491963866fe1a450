//! What the guest may send on the agent's connection: responses.
//!
//! The client of ttrpc 0.10 takes a frame of data for the answer of a plain call as well, and then keeps the call's entry for frames
//! that would follow (`ClientReader::get_resp_tx`): a guest that answers so fills this process, which no pod's limit holds. No call
//! of the agent's has a stream, so a frame of another kind ends the connection.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MESSAGE_TYPE_RESPONSE, MessageHeader};

/// A connection that breaks at the first frame that is no response. What is written is not looked at.
#[derive(Debug)]
pub(super) struct Responses<S> {
    stream: S,
    /// Of the frame that has begun, as far as it has come.
    header: Vec<u8>,
    /// Bytes of the frame's payload that are still to come.
    payload: usize,
}

impl<S> Responses<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, header: Vec::with_capacity(MESSAGE_HEADER_LENGTH), payload: 0 }
    }

    fn look(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let skipped = self.payload.min(bytes.len());
            self.payload -= skipped;
            bytes = &bytes[skipped..];
            let of_header = (MESSAGE_HEADER_LENGTH - self.header.len()).min(bytes.len());
            self.header.extend_from_slice(&bytes[..of_header]);
            bytes = &bytes[of_header..];
            if self.header.len() == MESSAGE_HEADER_LENGTH {
                let header = MessageHeader::from(&self.header);
                self.header.clear();
                if header.type_ != MESSAGE_TYPE_RESPONSE {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "the guest sent what is no response"));
                }
                self.payload = header.length as usize;
            }
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Responses<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, into))?;
        Poll::Ready(self.look(&into.filled()[before..]))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Responses<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of these types and payloads.
    fn frames(frames: &[(u8, usize)]) -> Vec<u8> {
        let frame = |&(type_, length): &(u8, usize)| {
            let header = MessageHeader { length: u32::try_from(length).unwrap(), stream_id: 1, type_, flags: 0 };
            // A payload that looks like headers of requests.
            [Vec::from(header), vec![1; length]].concat()
        };
        frames.iter().flat_map(frame).collect()
    }

    /// How many bytes pass when they come in pieces of this length.
    fn passed(bytes: &[u8], piece: usize) -> usize {
        let mut responses = Responses::new(());
        bytes.chunks(piece).take_while(|piece| responses.look(piece).is_ok()).map(<[u8]>::len).sum()
    }

    #[test]
    fn responses_pass_in_pieces_of_any_length() {
        let bytes = frames(&[(2, 0), (2, 25), (2, 0), (2, 1), (2, 300)]);
        for piece in 1..=bytes.len() {
            assert_eq!(passed(&bytes, piece), bytes.len(), "in pieces of {piece}");
        }
    }

    #[test]
    fn a_frame_of_another_kind_does_not_pass() {
        for other in [0, 1, 3, 255] {
            let good = frames(&[(2, 25), (2, 0)]);
            let bytes = [good.clone(), frames(&[(other, 25), (2, 0)])].concat();
            for piece in 1..=bytes.len() {
                let passed = passed(&bytes, piece);
                assert!(passed < good.len() + MESSAGE_HEADER_LENGTH, "{other} in pieces of {piece}: {passed}");
            }
        }
    }
}
