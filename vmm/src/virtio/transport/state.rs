//! A function in a snapshot: the registers that its driver has written, and how far its rings were served. Devices have
//! nothing of their own to save: what they need besides is made anew.

use super::common::{QueueRegisters, SavedCommon};
use crate::pci::{CONFIG_SIZE, MsiMessage, SavedVector};
use crate::snapshot::codec::{CodecError, Reader, Saved, Writer};
use virtio_queue::{Queue, QueueT};

/// Any device has fewer.
const MAX_QUEUES: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("device in slot {0} is being started or reset")]
    Busy(u8),
    #[error("device in slot {0} does not give its queues back")]
    Lost(u8),
    #[error("device in slot {0} is another than the saved one")]
    Other(u8),
    #[error("device in slot {0} does not start where it was saved")]
    Start(u8),
}

/// How far a ring was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub next_avail: u16,
    pub next_used: u16,
}

impl Position {
    pub fn of(queue: &Queue) -> Self {
        Self { next_avail: queue.next_avail(), next_used: queue.next_used() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionState {
    pub slot: u8,
    pub(super) config: [u8; CONFIG_SIZE],
    pub(super) vectors: Vec<SavedVector>,
    pub(super) common: SavedCommon,
    pub(super) isr: u8,
    pub(super) generation: u8,
    pub(super) running: bool,
    pub(super) positions: Vec<Option<Position>>,
}

impl Saved for FunctionState {
    fn save(&self, writer: &mut Writer) {
        writer.object(&self.slot);
        writer.object(&self.config);
        writer.list(&self.vectors, |writer, vector| {
            let MsiMessage { address_low, address_high, data } = vector.message;
            writer.object(&[address_low, address_high, data]);
            writer.flag(vector.masked);
            writer.flag(vector.pending);
        });
        self.common.save(writer);
        writer.object(&[self.isr, self.generation]);
        writer.flag(self.running);
        writer.list(&self.positions, |writer, position| {
            writer.option(position.as_ref(), |writer, position| {
                writer.object(&[position.next_avail, position.next_used]);
            });
        });
    }

    fn load(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let slot = reader.object("a slot")?;
        let config = reader.object("a configuration space")?;
        let vectors = reader.list("vectors", MAX_QUEUES + 1, |reader| {
            let [address_low, address_high, data] = reader.object("a message")?;
            let message = MsiMessage { address_low, address_high, data };
            Ok(SavedVector { message, masked: reader.flag("a mask")?, pending: reader.flag("a pending bit")? })
        })?;
        let common = SavedCommon::load(reader)?;
        let [isr, generation] = reader.object("a change")?;
        let running = reader.flag("whether a device runs")?;
        let positions = reader.list("positions", MAX_QUEUES, |reader| {
            reader.option("a position", |reader| {
                let [next_avail, next_used] = reader.object("a position")?;
                Ok(Position { next_avail, next_used })
            })
        })?;
        Ok(Self { slot, config, vectors, common, isr, generation, running, positions })
    }
}

impl Saved for SavedCommon {
    fn save(&self, writer: &mut Writer) {
        writer.object(&[self.device_feature_select, self.driver_feature_select]);
        writer.number(self.driver_features);
        writer.object(&[self.config_vector, self.queue_select]);
        writer.object(&self.status);
        writer.list(&self.queues, |writer, queue| {
            writer.object(&[queue.max_size, queue.size, queue.vector]);
            writer.flag(queue.enabled);
            writer.object(&[queue.descriptors, queue.driver, queue.device]);
        });
    }

    fn load(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let [device_feature_select, driver_feature_select] = reader.object("feature selectors")?;
        let driver_features = reader.number("features")?;
        let [config_vector, queue_select] = reader.object("selectors")?;
        let status = reader.object("a status")?;
        let queues = reader.list("queues", MAX_QUEUES, |reader| {
            let [max_size, size, vector] = reader.object("a queue's size")?;
            let enabled = reader.flag("whether a queue is enabled")?;
            let [descriptors, driver, device] = reader.object("a queue's addresses")?;
            Ok(QueueRegisters { max_size, size, vector, enabled, descriptors, driver, device })
        })?;
        Ok(Self {
            device_feature_select,
            driver_feature_select,
            driver_features,
            config_vector,
            status,
            queue_select,
            queues,
        })
    }
}
