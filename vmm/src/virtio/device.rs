//! What the transport and a virtio device agree on.
//!
//! The transport owns status, feature negotiation, queue addresses and interrupts, once for all devices. A
//! device sees none of them: it is started with what was agreed and stopped again.
//!
//! ```text
//!            start(resources)
//!  stopped ───────────────────► started      the device's worker thread owns the queues
//!     ▲                            │
//!     └────────────────────────────┘
//!               stop()                       the worker has ended; reset, unplug and snapshot all use this
//! ```

use std::io;
use std::sync::Arc;
use std::task::Waker;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// Guest-physical memory, shared with the vCPUs. Whatever is read from it may change at any moment: copy
/// once, then parse the copy.
pub type GuestMemory = Arc<GuestMemoryMmap<()>>;

/// What a device is, constant over its life.
#[derive(Clone, Debug)]
pub struct DeviceTraits {
    /// Device type number (virtio 1.3, section 5).
    pub device_type: u16,
    /// Offered features, without those of the transport (`VERSION_1`, ring features are added there).
    pub features: u64,
    /// Largest size of each queue; each is a power of two.
    pub queue_sizes: &'static [u16],
}

/// One running queue: the ring, the driver's kick and the interrupt back.
#[derive(Debug)]
pub struct RunningQueue {
    /// Configured, enabled and validated by the transport.
    pub queue: virtio_queue::Queue,
    /// Signalled when the driver adds buffers (an ioeventfd).
    pub kick: EventFd,
    pub interrupt: Arc<dyn Interrupt>,
}

/// What a device runs with, from `DRIVER_OK` until `stop`.
#[derive(Debug)]
pub struct Resources {
    pub memory: GuestMemory,
    /// What the driver accepted of [`DeviceTraits::features`] and the ring features.
    pub features: u64,
    /// One per entry of [`DeviceTraits::queue_sizes`]; `None` where the driver left a queue disabled.
    pub queues: Vec<Option<RunningQueue>>,
    /// For configuration changes.
    pub config_interrupt: Arc<dyn Interrupt>,
    /// To be woken when a worker has ended.
    pub ended: Waker,
}

/// An interrupt that a device may raise.
pub trait Interrupt: Send + Sync + std::fmt::Debug {
    /// Interrupts the driver, or records that it is due if the driver masked it.
    fn trigger(&self) -> io::Result<()>;
}

/// Why a device did not start. The guest sees `DEVICE_NEEDS_RESET`.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("driver left queue {0} disabled, which the device needs")]
    QueueDisabled(usize),
    #[error("cannot start a device thread")]
    Worker(#[source] io::Error),
    #[error("device is lost: its backend failed before")]
    BackendLost,
}

/// A device behind the transport. All calls come from one thread at a time.
pub trait VirtioDevice: Send + std::fmt::Debug {
    fn traits(&self) -> DeviceTraits;

    /// Copies device configuration from `offset`; bytes beyond its end read as zero.
    fn read_config(&self, offset: usize, data: &mut [u8]);

    /// Most devices have nothing writable: the default ignores the write.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    /// Hands over the queues. Not called while started.
    fn start(&mut self, resources: Resources) -> Result<(), StartError>;

    /// Asks the worker to end, without waiting for it. True when [`Self::stop`] would not wait either; until then
    /// [`Resources::ended`] is woken when that may have changed. For devices whose I/O may hang.
    fn request_stop(&mut self) -> bool {
        true
    }

    /// Ends the worker after the requests in flight and returns each queue where it stands; `None` for queues that
    /// were not running. Idempotent.
    fn stop(&mut self) -> Vec<Option<virtio_queue::Queue>>;
}

/// `read_config` of a device whose configuration is the bytes `config`.
pub fn read_config_bytes(config: &[u8], offset: usize, data: &mut [u8]) {
    data.fill(0);
    if let Some(available) = config.get(offset..) {
        let length = available.len().min(data.len());
        data[..length].copy_from_slice(&available[..length]);
    }
}
