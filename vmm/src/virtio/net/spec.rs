//! Wire layout of virtio-net (virtio 1.3, section 5.1).

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};

/// Network device.
pub const DEVICE_TYPE: u16 = 1;

pub const QUEUE_SIZE: u16 = 256;

/// `struct virtio_net_config` up to the MTU: MAC address, status, number of queue pairs, MTU.
pub const CONFIG_LENGTH: usize = 12;

/// `struct virtio_net_hdr` with its number of buffers, as the driver has it.
pub const HEADER_LENGTH: usize = 12;

/// The same without that number, as a tap device has it unless it is told otherwise.
pub const TAP_HEADER_LENGTH: usize = 10;

/// Longest frame: 64 KiB of IP packet before segmentation, Ethernet header and a VLAN tag.
pub const MAX_FRAME: usize = 65_535 + 14 + 4;

/// The checksum is not made yet.
pub const FLAG_NEEDS_CHECKSUM: u8 = 1;

pub const SEGMENT_NONE: u8 = 0;
pub const SEGMENT_TCP_V4: u8 = 1;
pub const SEGMENT_TCP_V6: u8 = 4;

pub const FEATURES: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_MTU
    | 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_MRG_RXBUF;

pub fn config(mac: [u8; 6], mtu: u16) -> [u8; CONFIG_LENGTH] {
    let mut config = [0; CONFIG_LENGTH];
    config[..6].copy_from_slice(&mac);
    config[10..].copy_from_slice(&mtu.to_le_bytes());
    config
}
