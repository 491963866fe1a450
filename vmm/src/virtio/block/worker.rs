//! Carries out requests of virtio-blk.

use super::image::{Image, transfer};
use super::request::{Data, Limits, Request};
use super::spec::{HEADER_LENGTH, ID_LENGTH, Status};
use crate::jail::ThreadKind;
use crate::virtio::chain::{Chain, Memory};
use crate::virtio::service::Service;
use crate::virtio::throttle::Throttle;
use crate::virtio::vectored;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What every disk calls itself; the guest tells disks apart by their PCI address.
const ID: &[u8] = b"bulkhead";

#[derive(Debug)]
pub struct Disk {
    image: Arc<Image>,
    limits: Limits,
    throttle: Option<Arc<Mutex<Throttle>>>,
}

impl Disk {
    pub fn new(image: Arc<Image>, limits: Limits, throttle: Option<Arc<Mutex<Throttle>>>) -> Self {
        Self { image, limits, throttle }
    }

    fn throttle(&self) -> Option<MutexGuard<'_, Throttle>> {
        Some(self.throttle.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Answers a request; `None` if it has no place for a status.
    fn answer(&self, memory: &Memory, chain: &Chain) -> Option<u32> {
        let data_length = chain.writable.len().checked_sub(1)?;
        let (status, written) = match self.execute(memory, chain, data_length) {
            Ok(written) => (Status::Ok, written),
            Err(status) => (status, 0),
        };
        chain.writable.copy_from(memory, data_length, &[status as u8]).ok()?;
        u32::try_from(written + 1).ok()
    }

    /// Carries a request out and returns how many bytes of data it wrote to guest memory.
    fn execute(&self, memory: &Memory, chain: &Chain, wanted: usize) -> Result<usize, Status> {
        let mut header = [0; HEADER_LENGTH];
        chain.readable.copy_to(memory, 0, &mut header).map_err(|_| Status::IoError)?;
        let data = Data { sent: chain.readable.len() - HEADER_LENGTH, wanted };
        let request = Request::parse(header, data, self.limits, |length| {
            let mut ranges = vec![0; length];
            chain.readable.copy_to(memory, HEADER_LENGTH, &mut ranges).ok()?;
            Some(ranges)
        })?;
        match request {
            Request::Read { offset } => {
                self.image.read(memory, &chain.writable, wanted, offset)?;
                return Ok(wanted);
            }
            Request::Write { offset } => {
                let data = HEADER_LENGTH..chain.readable.len();
                let file = self.image.writable()?;
                transfer(memory, &chain.readable, data, offset, |at, of| vectored::write_at(file, at, of))?;
            }
            Request::Flush => self.image.sync()?,
            Request::Identify => {
                let mut id = [0; ID_LENGTH];
                id[..ID.len()].copy_from_slice(ID);
                let length = wanted.min(ID_LENGTH);
                chain.writable.copy_from(memory, 0, &id[..length]).map_err(|_| Status::IoError)?;
                return Ok(length);
            }
            Request::Discard(ranges) => {
                for range in ranges {
                    self.allocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, range)?;
                }
            }
            Request::WriteZeroes(ranges) => {
                for zeroes in ranges {
                    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE;
                    let mode = if zeroes.unmap { punch } else { FallocateFlags::FALLOC_FL_ZERO_RANGE };
                    self.allocate(mode, zeroes.range)?;
                }
            }
        }
        Ok(0)
    }

    fn allocate(&self, mode: FallocateFlags, range: Range<u64>) -> Result<(), Status> {
        if range.is_empty() {
            return Ok(());
        }
        let offset = |bytes: u64| libc::off_t::try_from(bytes).map_err(|_| Status::IoError);
        let (start, length) = (offset(range.start)?, offset(range.end - range.start)?);
        let file = self.image.writable()?;
        loop {
            match fallocate(file, mode | FallocateFlags::FALLOC_FL_KEEP_SIZE, start, length) {
                Ok(()) => return Ok(()),
                Err(Errno::EINTR) => {}
                // The guest's kernel writes zeroes itself then.
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return Err(Status::Unsupported),
                Err(_) => return Err(Status::IoError),
            }
        }
    }
}

impl Service for Disk {
    const THREAD: ThreadKind = ThreadKind::Block;

    fn serve(&mut self, memory: &Memory, chain: &Chain) -> u32 {
        if let Some(mut throttle) = self.throttle() {
            // Header and status are counted with the data: no rate is that exact.
            let bytes = chain.readable.len() + chain.writable.len();
            throttle.count(bytes as u64, Instant::now());
        }
        self.answer(memory, chain).unwrap_or(0)
    }

    fn next(&self) -> Option<Instant> {
        self.throttle()?.next(Instant::now())
    }
}
