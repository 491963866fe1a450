//! Everything about a machine but its memory's content.

use super::clock::GuestClock;
use super::codec::{CodecError, Reader, Saved, Writer};
use super::memory::{self, Extent};
use super::vcpu::VcpuState;
use crate::pci::SLOTS;
use crate::virtio::transport::FunctionState;
use std::ops::Range;
use vmm_protocol::{MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB};

#[derive(Debug)]
pub struct MachineState {
    pub memory_mib: u32,
    pub extents: Vec<Extent>,
    /// Guest addresses of the root image.
    pub root_image: Range<u64>,
    pub clock: GuestClock,
    /// How many processors the guest was told of.
    pub processors: u8,
    /// The first one, which alone has run.
    pub vcpu: VcpuState,
    /// The PCI register that the guest has selected.
    pub bus_address: u32,
    pub functions: Vec<FunctionState>,
}

impl Saved for MachineState {
    fn save(&self, writer: &mut Writer) {
        writer.object(&self.memory_mib);
        memory::save_extents(writer, &self.extents);
        writer.object(&[self.root_image.start, self.root_image.end]);
        self.clock.save(writer);
        writer.object(&self.processors);
        self.vcpu.save(writer);
        writer.object(&self.bus_address);
        writer.list(&self.functions, |writer, function| function.save(writer));
    }

    fn load(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let memory_mib = reader.object("the size of memory")?;
        let extents = memory::load_extents(reader)?;
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&memory_mib) {
            return Err(CodecError::Value("the size of memory"));
        }
        let [start, end] = reader.object("the root image's place")?;
        let clock = GuestClock::load(reader)?;
        let processors = reader.object("the number of processors")?;
        if !(1..=MAX_VCPUS).contains(&processors) {
            return Err(CodecError::Value("the number of processors"));
        }
        Ok(Self {
            memory_mib,
            extents,
            root_image: start..end,
            clock,
            processors,
            vcpu: VcpuState::load(reader)?,
            bus_address: reader.object("the selected register")?,
            functions: reader.list("the functions", SLOTS, FunctionState::load)?,
        })
    }
}
