//! Carries out requests of virtio-blk. The queues of a disk share it, each from a thread of its own.

use super::image::Image;
use super::request::{Data, Limits, Request};
use super::spec::{HEADER_LENGTH, ID_LENGTH, Status};
use crate::virtio::chain::{Chain, Memory};
use crate::virtio::failure::{Failure, Reporter};
use crate::virtio::throttle::Throttle;
use nix::fcntl::FallocateFlags;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What every disk calls itself; the guest tells disks apart by their PCI address.
const ID: &[u8] = b"bulkhead";

#[derive(Debug)]
pub struct Disk {
    pub image: Image,
    pub limits: Limits,
    /// Outlives resets, with which a guest could begin anew else.
    pub throttle: Option<Mutex<Throttle>>,
    pub reporter: Option<Reporter>,
}

/// What became of a request.
#[derive(Debug)]
pub enum Progress {
    /// It is answered; so many bytes of its writable buffer were written.
    Done(u32),
    /// The node reads its data from a disk. [`Disk::finish`] waits for that.
    Reads(Reading),
}

/// A read that is under way.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    offset: u64,
    done: usize,
}

impl Disk {
    /// When the next request may begin; `None` is at once.
    pub fn next(&self) -> Option<Instant> {
        self.throttle()?.next(Instant::now())
    }

    /// Carries out a request. With `others` to be served meanwhile, a read that the node has not in memory is only begun.
    pub fn begin(&self, memory: &Memory, chain: &Chain, others: bool) -> Progress {
        if let Some(mut throttle) = self.throttle() {
            // Header and status are counted with the data: no rate is that exact.
            let bytes = chain.readable.len() + chain.writable.len();
            throttle.count(bytes as u64, Instant::now());
        }
        // Without a place for a status there is nothing to answer.
        let Some(wanted) = chain.writable.len().checked_sub(1) else { return Progress::Done(0) };
        let result = match self.parse(memory, chain, wanted) {
            Ok(Request::Read { offset }) if others => {
                match self.image.read_cached(memory, &chain.writable, wanted, offset) {
                    Ok(done) if done < wanted => return Progress::Reads(Reading { offset, done }),
                    result => result.map_err(|error| self.failed(&error)),
                }
            }
            Ok(request) => self.execute(memory, chain, wanted, request),
            Err(status) => Err(status),
        };
        Progress::Done(answer(memory, chain, wanted, result))
    }

    /// Waits for what was begun. Returns how many bytes of the writable buffer were written.
    pub fn finish(&self, memory: &Memory, chain: &Chain, reading: Reading) -> u32 {
        let wanted = chain.writable.len().saturating_sub(1);
        let (rest, offset) = (reading.done..wanted, reading.offset + reading.done as u64);
        let result = self.image.read(memory, &chain.writable, rest, offset);
        answer(memory, chain, wanted, result.map(|()| wanted).map_err(|error| self.failed(&error)))
    }

    fn parse(&self, memory: &Memory, chain: &Chain, wanted: usize) -> Result<Request, Status> {
        let mut header = [0; HEADER_LENGTH];
        chain.readable.copy_to(memory, 0, &mut header).map_err(|_| Status::IoError)?;
        let data = Data { sent: chain.readable.len() - HEADER_LENGTH, wanted };
        Request::parse(header, data, self.limits, |length| {
            let mut ranges = vec![0; length];
            chain.readable.copy_to(memory, HEADER_LENGTH, &mut ranges).ok()?;
            Some(ranges)
        })
    }

    /// Carries a request out and returns how many bytes of data it wrote to guest memory.
    fn execute(&self, memory: &Memory, chain: &Chain, wanted: usize, request: Request) -> Result<usize, Status> {
        let done = match request {
            Request::Read { offset } => self.image.read(memory, &chain.writable, 0..wanted, offset).map(|()| wanted),
            Request::Write { offset } => {
                let data = HEADER_LENGTH..chain.readable.len();
                self.image.write(memory, &chain.readable, data, offset).map(|()| 0)
            }
            Request::Flush => return self.flush().map(|()| 0),
            Request::Identify => {
                let mut id = [0; ID_LENGTH];
                id[..ID.len()].copy_from_slice(ID);
                let length = wanted.min(ID_LENGTH);
                chain.writable.copy_from(memory, 0, &id[..length]).map_err(|_| Status::IoError)?;
                return Ok(length);
            }
            Request::Discard(ranges) => {
                let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE;
                ranges.into_iter().try_for_each(|range| self.image.allocate(punch, range)).map(|()| 0)
            }
            Request::WriteZeroes(ranges) => ranges
                .into_iter()
                .try_for_each(|zeroes| {
                    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE;
                    let mode = if zeroes.unmap { punch } else { FallocateFlags::FALLOC_FL_ZERO_RANGE };
                    self.image.allocate(mode, zeroes.range)
                })
                .map(|()| 0),
        };
        done.map_err(|error| self.failed(&error))
    }

    fn flush(&self) -> Result<(), Status> {
        self.image.sync().map_err(|error| {
            if !is_refusal(&error) {
                tracing::error!(%error, "the node lost something that the guest wrote: its disk takes no more");
                self.report(Failure::LostWrite);
            }
            Status::IoError
        })
    }

    /// What the guest is told of an error of the node.
    fn failed(&self, error: &io::Error) -> Status {
        match error.kind() {
            // The guest's kernel writes zeroes itself then.
            io::ErrorKind::Unsupported => return Status::Unsupported,
            _ if is_refusal(error) => {}
            _ => self.report(Failure::from(error)),
        }
        Status::IoError
    }

    fn report(&self, failure: Failure) {
        if let Some(reporter) = &self.reporter {
            reporter.report(failure);
        }
    }

    fn throttle(&self) -> Option<MutexGuard<'_, Throttle>> {
        Some(self.throttle.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A disk that takes nothing more says so without asking the node. It was told when it came to that.
fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ReadOnlyFilesystem && error.raw_os_error().is_none()
}

/// Writes the status of a request whose data are `wanted` bytes long, and returns how much was written in all.
fn answer(memory: &Memory, chain: &Chain, wanted: usize, result: Result<usize, Status>) -> u32 {
    let (status, written) = match result {
        Ok(written) => (Status::Ok, written),
        Err(status) => (status, 0),
    };
    match chain.writable.copy_from(memory, wanted, &[status as u8]) {
        Ok(()) => u32::try_from(written + 1).unwrap_or(0),
        Err(_) => 0,
    }
}
