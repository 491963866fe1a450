//! The header that the driver puts before each frame it sends.

use super::spec::{
    FLAG_NEEDS_CHECKSUM, HEADER_LENGTH, SEGMENT_NONE, SEGMENT_TCP_V4, SEGMENT_TCP_V6, TAP_HEADER_LENGTH,
};
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6};

/// Turns the driver's header into the tap's. `None` if it asks for what was not agreed: such a frame is dropped
/// here, before the host's network stack sees the request. Offsets and lengths are checked by the kernel, which has
/// the frame.
pub fn tap_header(header: [u8; HEADER_LENGTH], features: u64) -> Option<[u8; TAP_HEADER_LENGTH]> {
    let agreed = |feature: u32| features & 1 << feature != 0;
    let [flags, segmentation, ..] = header;
    let checksum = match flags {
        0 => true,
        FLAG_NEEDS_CHECKSUM => agreed(VIRTIO_NET_F_CSUM),
        _ => false,
    };
    let segments = match segmentation {
        SEGMENT_NONE => true,
        SEGMENT_TCP_V4 => agreed(VIRTIO_NET_F_HOST_TSO4),
        SEGMENT_TCP_V6 => agreed(VIRTIO_NET_F_HOST_TSO6),
        _ => false,
    };
    (checksum && segments).then(|| header.first_chunk().copied()).flatten()
}
