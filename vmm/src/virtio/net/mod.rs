//! virtio-net: the guest's network interface, on a tap device of the host.

mod in_place;
mod request;
mod spec;
mod tap;
#[cfg(test)]
mod tests;
mod worker;

use super::device::{DeviceTraits, Resources, StartError, VirtioDevice, read_config_bytes};
use super::ring::Ring;
use crate::jail::ThreadKind;
use crate::worker::Worker;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use spec::{CONFIG_LENGTH, DEVICE_TYPE, FEATURES, QUEUE_SIZE};
use std::fs::File;
use std::io;
use tap::{Link, Tap};
use virtio_queue::Queue;
use worker::Traffic;

const RECEIVE_QUEUE: usize = 0;
const TRANSMIT_QUEUE: usize = 1;

/// Smallest MTU of an interface (RFC 791).
const MTU_MIN: u16 = 68;

/// Why a tap device cannot be an interface.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("MTU {0} of a network interface is below {MTU_MIN}")]
    Mtu(u16),
    #[error("cannot make the tap device non-blocking")]
    NonBlocking(#[source] io::Error),
}

#[derive(Debug)]
pub struct Net<L: Link = Tap> {
    link: L,
    config: [u8; CONFIG_LENGTH],
    worker: Option<Worker<Traffic<L>>>,
}

impl Net {
    /// An interface on `tap`, a tap device with `IFF_VNET_HDR` and the header length that it had when made.
    pub fn new(tap: File, mac: [u8; 6], mtu: u16) -> Result<Self, NetError> {
        let flags = fcntl(&tap, FcntlArg::F_GETFL).map_err(|error| NetError::NonBlocking(error.into()))?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(&tap, FcntlArg::F_SETFL(flags)).map_err(|error| NetError::NonBlocking(error.into()))?;
        Self::on_link(Tap::new(tap), mac, mtu)
    }
}

impl<L: Link> Net<L> {
    /// The same on any link, which must not block.
    fn on_link(link: L, mac: [u8; 6], mtu: u16) -> Result<Self, NetError> {
        if mtu < MTU_MIN {
            return Err(NetError::Mtu(mtu));
        }
        Ok(Self { link, config: spec::config(mac, mtu), worker: None })
    }
}

impl<L: Link + Clone + std::fmt::Debug> VirtioDevice for Net<L> {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits { device_type: DEVICE_TYPE, features: FEATURES, queue_sizes: &[QUEUE_SIZE, QUEUE_SIZE] }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn start(&mut self, mut resources: Resources) -> Result<(), StartError> {
        let receive = Ring::take(&mut resources, RECEIVE_QUEUE)?;
        let transmit = Ring::take(&mut resources, TRANSMIT_QUEUE)?;
        let traffic = Traffic::new(self.link.clone(), receive, transmit, resources.features);
        self.worker = Some(Worker::spawn(ThreadKind::Net, traffic).map_err(StartError::Worker)?);
        Ok(())
    }

    fn stop(&mut self) -> Vec<Option<Queue>> {
        let Some(worker) = self.worker.take() else { return vec![None, None] };
        match worker.stop() {
            Ok(traffic) => traffic.into_queues().map(Some).into(),
            Err(error) => {
                tracing::error!(%error, "cannot end the network interface's thread");
                vec![None, None]
            }
        }
    }
}
