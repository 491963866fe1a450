//! Interrupts that are not a queue's: configuration changes, and vectors that the driver did not choose.

use crate::virtio::device::Interrupt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Bit of the ISR register for configuration changes.
const ISR_CONFIG: u8 = 1 << 1;

/// The driver polls instead.
#[derive(Debug)]
pub struct NoInterrupt;

impl Interrupt for NoInterrupt {
    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

/// State that device threads share with the registers.
#[derive(Debug, Default)]
pub struct ConfigChange {
    pub isr: AtomicU8,
    /// Changes with the device configuration, so that a driver that read half of it notices.
    pub generation: AtomicU8,
}

/// Tells the driver that the device configuration or the status changed.
#[derive(Debug)]
pub struct ConfigInterrupt {
    pub change: Arc<ConfigChange>,
    pub vector: Arc<dyn Interrupt>,
}

impl Interrupt for ConfigInterrupt {
    fn trigger(&self) -> io::Result<()> {
        self.change.generation.fetch_add(1, Ordering::AcqRel);
        self.change.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
        self.vector.trigger()
    }
}
