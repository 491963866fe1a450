//! virtio-blk: a raw disk in a file or on a block device of the host, or a read-only one of several files.
//!
//! The image's format is never probed: what a guest writes to its first sectors must not make the host open other
//! files. Requests are carried out one after the other on the device's thread.

mod image;
mod request;
mod spec;
#[cfg(test)]
mod tests;
mod worker;

use super::device::{DeviceTraits, Resources, StartError, VirtioDevice, read_config_bytes};
use super::ring::Ring;
use super::service::ServiceThread;
use super::throttle::Throttle;
use image::Image;
use request::Limits;
use spec::{CONFIG_LENGTH, DEVICE_TYPE, QUEUE_SIZE, SECTOR};
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_queue::Queue;
use vmm_protocol::{MAX_PARTS, RateLimit};
use worker::Disk;

const REQUEST_QUEUE: usize = 0;

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

#[derive(Debug)]
pub struct Block {
    image: Arc<Image>,
    limits: Limits,
    /// Outlives resets, with which a guest could begin anew else.
    throttle: Option<Arc<Mutex<Throttle>>>,
    config: [u8; CONFIG_LENGTH],
    thread: ServiceThread<Disk>,
}

impl Block {
    /// A disk of the size that `image` has now.
    pub fn new(image: File, read_only: bool, rate: RateLimit) -> Result<Self, BlockError> {
        Ok(Self::of(Image::file(image, read_only)?, read_only, rate))
    }

    /// A read-only disk of several files: `docs/protocols/vmm.md` has the layout.
    pub fn layers(parts: Vec<File>, rate: RateLimit) -> Result<Self, BlockError> {
        Ok(Self::of(Image::parts(parts)?, true, rate))
    }

    fn of(image: Image, read_only: bool, rate: RateLimit) -> Self {
        let limits = Limits { sectors: image.length() / SECTOR, read_only };
        let config = spec::config(limits.sectors);
        let limited = rate != RateLimit::default();
        let throttle = limited.then(|| Arc::new(Mutex::new(Throttle::new(rate, Instant::now()))));
        Self { image: Arc::new(image), limits, throttle, config, thread: ServiceThread::default() }
    }
}

impl VirtioDevice for Block {
    fn traits(&self) -> DeviceTraits {
        let mut features = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_FLUSH;
        if self.limits.read_only {
            features |= 1 << VIRTIO_BLK_F_RO;
        } else {
            features |= 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
        }
        DeviceTraits { device_type: DEVICE_TYPE, features, queue_sizes: &[QUEUE_SIZE] }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn start(&mut self, mut resources: Resources) -> Result<(), StartError> {
        let ring = Ring::take(&mut resources, REQUEST_QUEUE)?;
        self.thread.start(ring, Disk::new(Arc::clone(&self.image), self.limits, self.throttle.clone()))
    }

    fn stop(&mut self) -> Vec<Option<Queue>> {
        vec![self.thread.stop()]
    }
}
