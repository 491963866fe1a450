//! virtio-blk: a raw disk in a file or on a block device of the host.
//!
//! The image's format is never probed: what a guest writes to its first sectors must not make the host open other
//! files. Requests are carried out one after the other on the device's thread.

mod request;
mod spec;
#[cfg(test)]
mod tests;
mod worker;

use super::device::{DeviceTraits, Resources, StartError, VirtioDevice, read_config_bytes};
use super::ring::Ring;
use super::service::ServiceThread;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use request::Limits;
use spec::{CONFIG_LENGTH, DEVICE_TYPE, QUEUE_SIZE, SECTOR};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_queue::Queue;
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
}

#[derive(Debug)]
pub struct Block {
    image: Arc<File>,
    limits: Limits,
    config: [u8; CONFIG_LENGTH],
    thread: ServiceThread<Disk>,
}

impl Block {
    /// A disk of the size that `image` has now.
    pub fn new(mut image: File, read_only: bool) -> Result<Self, BlockError> {
        let file_type = image.metadata().map_err(BlockError::Inspect)?.file_type();
        if !file_type.is_file() && !file_type.is_block_device() {
            return Err(BlockError::Type);
        }
        check_mode(&image, read_only)?;
        // Tells the size of a block device as well.
        let length = image.seek(SeekFrom::End(0)).map_err(BlockError::Inspect)?;
        if length == 0 || !length.is_multiple_of(SECTOR) {
            return Err(BlockError::Length(length));
        }
        let limits = Limits { sectors: length / SECTOR, read_only };
        let config = spec::config(limits.sectors);
        Ok(Self { image: Arc::new(image), limits, config, thread: ServiceThread::default() })
    }
}

fn check_mode(image: &File, read_only: bool) -> Result<(), BlockError> {
    let flags = fcntl(image, FcntlArg::F_GETFL).map_err(|error| BlockError::Inspect(error.into()))?;
    match OFlag::from_bits_retain(flags & libc::O_ACCMODE) {
        OFlag::O_RDWR => Ok(()),
        OFlag::O_RDONLY if read_only => Ok(()),
        OFlag::O_RDONLY => Err(BlockError::Mode("writing")),
        _ => Err(BlockError::Mode("reading")),
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
        self.thread.start(ring, Disk::new(Arc::clone(&self.image), self.limits))
    }

    fn stop(&mut self) -> Vec<Option<Queue>> {
        vec![self.thread.stop()]
    }
}
