//! The common configuration registers (virtio 1.3, section 4.1.4.3) as a state machine without side effects.
//!
//! ```text
//!   status 0 ─► ACKNOWLEDGE ─► DRIVER ─► FEATURES_OK ─► DRIVER_OK ─► (main thread starts the device)
//!      ▲             features writable ┘   queues writable ┘  everything frozen      │
//!      └──────────── the main thread has stopped the device ◄── write of 0 ◄─────────┘
//! ```
//!
//! Everything that the device was checked against at its start stays as it was until the reset is done: a queue
//! that grows afterwards would send the device beyond the memory that was checked.

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Length of the registers, in bytes.
pub const LENGTH: u32 = 56;

/// A vector register's value for "no interrupt".
pub const NO_VECTOR: u16 = 0xffff;

const ACKNOWLEDGE: u8 = status_bit(VIRTIO_CONFIG_S_ACKNOWLEDGE);
const DRIVER: u8 = status_bit(VIRTIO_CONFIG_S_DRIVER);
const DRIVER_OK: u8 = status_bit(VIRTIO_CONFIG_S_DRIVER_OK);
const FEATURES_OK: u8 = status_bit(VIRTIO_CONFIG_S_FEATURES_OK);
const NEEDS_RESET: u8 = status_bit(VIRTIO_CONFIG_S_NEEDS_RESET);
const FAILED: u8 = status_bit(VIRTIO_CONFIG_S_FAILED);

const fn status_bit(bit: u32) -> u8 {
    assert!(bit <= 0x80);
    bit.to_le_bytes()[0]
}

/// What the transport offers for every device.
pub const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// What the driver chose for one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueRegisters {
    pub max_size: u16,
    pub size: u16,
    pub vector: u16,
    pub enabled: bool,
    pub descriptors: u64,
    pub driver: u64,
    pub device: u64,
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        Self { max_size, size: max_size, vector: NO_VECTOR, enabled: false, descriptors: 0, driver: 0, device: 0 }
    }
}

/// The registers in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedCommon {
    pub device_feature_select: u32,
    pub driver_feature_select: u32,
    pub driver_features: u64,
    pub config_vector: u16,
    pub status: u8,
    pub queue_select: u16,
    pub queues: Vec<QueueRegisters>,
}

/// What the main thread has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Start,
    Reset,
}

#[derive(Debug)]
pub struct CommonRegisters {
    offered: u64,
    vectors: u16,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    status: u8,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
    due: Option<Due>,
}

impl CommonRegisters {
    /// `vectors` is how many interrupts the driver may choose from.
    pub fn new(device_features: u64, queue_sizes: &[u16], vectors: u16) -> Self {
        Self {
            offered: device_features | TRANSPORT_FEATURES,
            vectors,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            queue_select: 0,
            queues: queue_sizes.iter().map(|size| QueueRegisters::new(*size)).collect(),
            due: None,
        }
    }

    pub fn due(&self) -> Option<Due> {
        self.due
    }

    pub fn accepted_features(&self) -> u64 {
        self.driver_features
    }

    pub fn config_vector(&self) -> u16 {
        self.config_vector
    }

    pub fn queues(&self) -> &[QueueRegisters] {
        &self.queues
    }

    /// For a snapshot; `None` while something is due.
    pub fn save(&self) -> Option<SavedCommon> {
        self.due.is_none().then(|| SavedCommon {
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            driver_features: self.driver_features,
            config_vector: self.config_vector,
            status: self.status,
            queue_select: self.queue_select,
            queues: self.queues.clone(),
        })
    }

    /// Takes over what was saved; false when a driver of this device could not have written it.
    pub fn restore(&mut self, saved: &SavedCommon) -> bool {
        let possible = |(now, saved): (&QueueRegisters, &QueueRegisters)| {
            saved.max_size == now.max_size
                && saved.size.is_power_of_two()
                && saved.size <= now.max_size
                && self.valid_vector(saved.vector) == saved.vector
        };
        let fits = self.queues.len() == saved.queues.len()
            && self.queues.iter().zip(&saved.queues).all(possible)
            && (saved.status & FEATURES_OK == 0 || saved.driver_features & !self.offered == 0)
            && self.valid_vector(saved.config_vector) == saved.config_vector;
        if fits {
            self.device_feature_select = saved.device_feature_select;
            self.driver_feature_select = saved.driver_feature_select;
            self.driver_features = saved.driver_features;
            self.config_vector = saved.config_vector;
            self.status = saved.status;
            self.queue_select = saved.queue_select;
            self.queues.clone_from(&saved.queues);
        }
        fits
    }

    /// The device runs, or could not be started.
    pub fn started(&mut self, ok: bool) {
        self.due = None;
        if !ok {
            self.status |= NEEDS_RESET;
        }
    }

    /// The device is stopped and its queues are forgotten.
    pub fn reset(&mut self) {
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.config_vector = NO_VECTOR;
        self.status = 0;
        self.queue_select = 0;
        self.due = None;
        for queue in &mut self.queues {
            *queue = QueueRegisters::new(queue.max_size);
        }
    }

    /// Reads any bytes of the registers; those beyond the end are zero.
    pub fn read(&self, offset: u64, generation: u8, data: &mut [u8]) {
        let image = self.image(generation);
        data.fill(0);
        let available = usize::try_from(offset).ok().and_then(|offset| image.get(offset..)).unwrap_or_default();
        let length = available.len().min(data.len());
        data[..length].copy_from_slice(&available[..length]);
    }

    fn image(&self, generation: u8) -> [u8; LENGTH as usize] {
        let none = QueueRegisters { size: 0, ..QueueRegisters::new(0) };
        let queue = self.queues.get(usize::from(self.queue_select)).unwrap_or(&none);
        let mut image = [0; LENGTH as usize];
        let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, &self.device_feature_select.to_le_bytes());
        put(4, &half(self.offered, self.device_feature_select));
        put(8, &self.driver_feature_select.to_le_bytes());
        put(12, &half(self.driver_features, self.driver_feature_select));
        put(16, &self.config_vector.to_le_bytes());
        put(18, &u16::try_from(self.queues.len()).unwrap_or(0).to_le_bytes());
        put(20, &[self.status, generation]);
        put(22, &self.queue_select.to_le_bytes());
        put(24, &queue.size.to_le_bytes());
        put(26, &queue.vector.to_le_bytes());
        put(28, &u16::from(queue.enabled).to_le_bytes());
        put(30, &self.queue_select.to_le_bytes());
        put(32, &queue.descriptors.to_le_bytes());
        put(40, &queue.driver.to_le_bytes());
        put(48, &queue.device.to_le_bytes());
        image
    }

    /// Writes one register, or one half of a 64-bit register. Other accesses, and registers that are frozen in the
    /// current state, are ignored. True when something became due.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        if self.due == Some(Due::Reset) {
            return false;
        }
        match (offset, data) {
            (20, &[status]) => return self.write_status(status),
            (0, &[a, b, c, d]) => self.device_feature_select = u32::from_le_bytes([a, b, c, d]),
            (8, &[a, b, c, d]) => self.driver_feature_select = u32::from_le_bytes([a, b, c, d]),
            (12, &[a, b, c, d]) => self.write_features(u32::from_le_bytes([a, b, c, d])),
            (22, &[a, b]) => self.queue_select = u16::from_le_bytes([a, b]),
            (16, &[a, b]) if self.status & DRIVER_OK == 0 => {
                self.config_vector = self.valid_vector(u16::from_le_bytes([a, b]));
            }
            (24..LENGTH_U64, data) => self.write_queue(offset, data),
            _ => crate::guest_warn!(offset, length = data.len(), "driver wrote a virtio register that it may not"),
        }
        false
    }

    fn valid_vector(&self, vector: u16) -> u16 {
        if vector < self.vectors { vector } else { NO_VECTOR }
    }

    fn write_features(&mut self, half: u32) {
        if self.status & DRIVER == 0 || self.status & FEATURES_OK != 0 {
            return;
        }
        let half = u64::from(half);
        match self.driver_feature_select {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | half,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | half << 32,
            _ => {}
        }
    }

    fn write_status(&mut self, status: u8) -> bool {
        if status == 0 {
            if self.status == 0 {
                return false;
            }
            self.due = Some(Due::Reset);
            return true;
        }
        let known = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
        // Bits only ever go away through a reset.
        let mut new = self.status | (status & known);
        let acceptable =
            self.driver_features & !self.offered == 0 && self.driver_features & 1 << VIRTIO_F_VERSION_1 != 0;
        if new & DRIVER == 0 || !acceptable {
            new &= !FEATURES_OK | self.status;
        }
        if new & FEATURES_OK == 0 {
            new &= !DRIVER_OK;
        }
        let starts = new & !self.status & DRIVER_OK != 0;
        self.status = new;
        if starts {
            self.due = Some(Due::Start);
        }
        starts
    }

    fn write_queue(&mut self, offset: u64, data: &[u8]) {
        let vectors = self.vectors;
        let negotiated = self.status & FEATURES_OK != 0 && self.status & (DRIVER_OK | FAILED) == 0;
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        if !negotiated || queue.enabled {
            return;
        }
        match (offset, data) {
            (24, &[a, b]) => {
                let size = u16::from_le_bytes([a, b]);
                if size.is_power_of_two() && size <= queue.max_size {
                    queue.size = size;
                }
            }
            (26, &[a, b]) => {
                let vector = u16::from_le_bytes([a, b]);
                queue.vector = if vector < vectors { vector } else { NO_VECTOR };
            }
            (28, &[1, 0]) => queue.enabled = true,
            (32..40, data) => write_address(&mut queue.descriptors, offset - 32, data),
            (40..48, data) => write_address(&mut queue.driver, offset - 40, data),
            (48..56, data) => write_address(&mut queue.device, offset - 48, data),
            _ => {}
        }
    }
}

const LENGTH_U64: u64 = LENGTH as u64;

/// The half of a feature set that a selector chooses.
fn half(features: u64, select: u32) -> [u8; 4] {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match select {
        0 => [a, b, c, d],
        1 => [e, f, g, h],
        _ => [0; 4],
    }
}

/// A 64-bit address, written whole or as one of its halves.
fn write_address(address: &mut u64, offset: u64, data: &[u8]) {
    if let Ok(bytes) = data.try_into() {
        if offset == 0 {
            *address = u64::from_le_bytes(bytes);
        }
    } else if let Ok(bytes) = data.try_into() {
        let half = u64::from(u32::from_le_bytes(bytes));
        match offset {
            0 => *address = *address & !0xffff_ffff | half,
            4 => *address = *address & 0xffff_ffff | half << 32,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
