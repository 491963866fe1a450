//! Bytes of the guest that wait for a slow stream.

use crate::virtio::chain::Slice;
use vm_memory::io::WriteVolatile;

/// A byte queue without a bound of its own: the credit of the connection is the bound.
#[derive(Debug, Default)]
pub struct Backlog {
    bytes: Vec<u8>,
    /// Taken already.
    start: usize,
}

impl Backlog {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Copies a piece of guest memory to the end.
    pub fn push(&mut self, slice: &Slice<'_>) {
        self.bytes.drain(..self.start);
        self.start = 0;
        // To a vector that grows: it takes everything.
        let _ = self.bytes.write_all_volatile(slice);
    }

    /// What comes next.
    pub fn front(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Forgets the first `count` bytes of [`Backlog::front`].
    pub fn consume(&mut self, count: usize) {
        self.start += count;
        if self.start >= self.bytes.len() {
            self.clear();
        }
    }

    /// Forgets everything, the memory too: idle connections hold none.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::VolatileSlice;

    #[test]
    fn bytes_come_out_in_order() {
        let mut backlog = Backlog::default();
        let mut out = Vec::new();
        for round in 0..50u8 {
            let mut piece = [round; 7];
            backlog.push(&VolatileSlice::from(&mut piece[..]));
            let taken = &backlog.front()[..5];
            out.extend_from_slice(taken);
            backlog.consume(5);
        }
        out.extend_from_slice(backlog.front());
        let expected: Vec<u8> = (0..50u8).flat_map(|round| [round; 7]).collect();
        assert_eq!(out, expected);
    }

    #[test]
    fn an_empty_backlog_holds_no_memory() {
        let mut backlog = Backlog::default();
        backlog.push(&VolatileSlice::from(&mut [1u8; 100][..]));
        backlog.consume(100);
        assert!(backlog.is_empty());
        assert_eq!(backlog.bytes.capacity(), 0);
    }
}
