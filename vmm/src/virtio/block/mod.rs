//! virtio-blk: a raw disk in a file or on a block device of the host, or a read-only one of several files.
//!
//! The image's format is never probed: what a guest writes to its first sectors must not make the host open other
//! files. Each queue has a thread.

mod disk;
mod image;
mod request;
mod spec;
#[cfg(test)]
mod tests;
mod worker;

pub use image::layer_places;

use super::device::{DeviceTraits, Resources, StartError, VirtioDevice, read_config_bytes};
use super::failure::Reporter;
use super::ring::Ring;
use super::throttle::Throttle;
use crate::jail::ThreadKind;
use crate::worker::Worker;
use disk::Disk;
use image::Image;
use request::Limits;
use spec::{CONFIG_LENGTH, DEVICE_TYPE, QUEUE_SIZE, SECTOR};
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_queue::Queue;
use vmm_protocol::{MAX_PARTS, RateLimit};
use worker::Requests;

/// Most queues of a disk: more threads do not make a node's disk faster.
pub const MAX_QUEUES: u16 = 4;

/// Why a file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    #[error("cannot inspect the disk image")]
    Inspect(#[source] io::Error),
    #[error("disk image is neither a regular file nor a block device")]
    Type,
    #[error("disk image of {0} bytes is not a positive multiple of {SECTOR}")]
    Length(u64),
    #[error("disk image is not open for {0}")]
    Mode(&'static str),
    #[error("a layer is not a regular file")]
    PartType,
    #[error("a layer is open for more than reading")]
    PartMode,
    #[error("{0} layers are no disk: one is empty, or they are none, or more than {MAX_PARTS}, or too long")]
    Parts(usize),
}

/// What a disk is, besides its content.
#[derive(Debug, Default)]
pub struct Options {
    pub limit: RateLimit,
    /// Queues, each with a thread, up to [`MAX_QUEUES`]; 0 is one.
    pub queues: u16,
    /// Told when the node fails the disk.
    pub reporter: Option<Reporter>,
}

#[derive(Debug)]
pub struct Block {
    disk: Arc<Disk>,
    queues: &'static [u16],
    config: [u8; CONFIG_LENGTH],
    workers: Vec<Worker<Requests>>,
}

impl Block {
    /// A disk of the size that `image` has now.
    pub fn new(image: File, read_only: bool, options: Options) -> Result<Self, BlockError> {
        Ok(Self::of(Image::file(image, read_only)?, read_only, options))
    }

    /// A read-only disk of several files: `docs/protocols/vmm.md` has the layout.
    pub fn layers(parts: Vec<File>, options: Options) -> Result<Self, BlockError> {
        Ok(Self::of(Image::parts(parts)?, true, options))
    }

    fn of(image: Image, read_only: bool, options: Options) -> Self {
        let limits = Limits { sectors: image.length() / SECTOR, read_only };
        let queues = options.queues.clamp(1, MAX_QUEUES);
        let config = spec::config(limits.sectors, queues);
        let limited = options.limit != RateLimit::default();
        let throttle = limited.then(|| Mutex::new(Throttle::new(options.limit, Instant::now())));
        let disk = Disk { image, limits, throttle, reporter: options.reporter };
        let queues = &[QUEUE_SIZE; MAX_QUEUES as usize][..usize::from(queues)];
        Self { disk: Arc::new(disk), queues, config, workers: Vec::new() }
    }
}

impl VirtioDevice for Block {
    fn traits(&self) -> DeviceTraits {
        let mut features = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_FLUSH;
        if self.disk.limits.read_only {
            features |= 1 << VIRTIO_BLK_F_RO;
        } else {
            features |= 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
        }
        if self.queues.len() > 1 {
            features |= 1 << VIRTIO_BLK_F_MQ;
        }
        DeviceTraits { device_type: DEVICE_TYPE, features, queue_sizes: self.queues }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    /// The driver may leave queues disabled, but not all.
    fn start(&mut self, mut resources: Resources) -> Result<(), StartError> {
        let enabled: Vec<_> = (0..resources.queues.len()).filter(|index| resources.queues[*index].is_some()).collect();
        if enabled.is_empty() {
            return Err(StartError::QueueDisabled(0));
        }
        for index in enabled {
            let requests = Requests::new(Ring::take(&mut resources, index)?, Arc::clone(&self.disk));
            let worker = Worker::spawn_telling(ThreadKind::Block, requests, resources.ended.clone());
            // Those that run end at the reset that the driver is told to make.
            self.workers.push(worker.map_err(StartError::Worker)?);
        }
        Ok(())
    }

    fn request_stop(&mut self) -> bool {
        let mut all = true;
        // Every one is asked, and none is waited for.
        for worker in &self.workers {
            all &= worker.request_stop().unwrap_or_else(|error| {
                tracing::error!(%error, "cannot stop a disk's thread");
                false
            });
        }
        all
    }

    fn stop(&mut self) -> Vec<Option<Queue>> {
        self.request_stop();
        let stopped = self.workers.drain(..).map(|worker| {
            worker
                .stop()
                .inspect_err(|error| tracing::error!(%error, "cannot end a disk's thread"))
                .ok()
                .map(Requests::into_queue)
        });
        stopped.collect()
    }
}
