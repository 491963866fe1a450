//! Requests of the driver: what it may plug is decided by [`Blocks`], and what it unplugs goes back to the node.

use super::Shared;
use super::blocks::Refusal;
use super::spec::{REQUEST_LENGTH, RESPONSE_LENGTH, Request, Response};
use crate::jail::ThreadKind;
use crate::virtio::chain::{Buffer, Chain, ChainError, Memory};
use crate::virtio::discard::drop_pages;
use crate::virtio::service::Service;
use std::ops::Range;
use std::sync::Arc;
use vm_memory::{GuestAddress, GuestMemory as _, Permissions};

#[derive(Debug)]
pub struct Requests(pub Arc<Shared>);

impl Service for Requests {
    const THREAD: ThreadKind = ThreadKind::Memory;

    fn serve(&mut self, memory: &Memory, chain: &Chain) -> u32 {
        self.answer(memory, &chain.readable, &chain.writable).map_or(0, |()| RESPONSE_LENGTH)
    }
}

impl Requests {
    fn answer(&self, memory: &Memory, request: &Buffer, answer: &Buffer) -> Result<(), ChainError> {
        let mut bytes = [0; REQUEST_LENGTH];
        request.copy_to(memory, 0, &mut bytes)?;
        let response = Request::parse(&bytes).map_or(Response::Wrong, |request| self.carry_out(memory, request));
        answer.copy_from(memory, 0, &response.bytes())
    }

    fn carry_out(&self, memory: &Memory, request: Request) -> Response {
        let mut blocks = self.0.blocks();
        let refused = |refusal| match refusal {
            Refusal::TooMany => Response::Refused,
            Refusal::Wrong => Response::Wrong,
        };
        match request {
            Request::Plug(start, count) => blocks.plug(start, count).map_or_else(refused, |()| Response::Done),
            Request::Unplug(start, count) => match blocks.unplug(start, count) {
                Ok(range) => discard(memory, &range),
                Err(refusal) => refused(refusal),
            },
            Request::UnplugAll => discard(memory, &blocks.unplug_all()),
            Request::State(start, count) => blocks.state(start, count).map_or(Response::Wrong, Response::State),
        }
    }
}

/// Memory that is unplugged has to read as zeroes when it is plugged again.
fn discard(memory: &Memory, range: &Range<u64>) -> Response {
    let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
    let dropped = memory
        .get_slices(GuestAddress(range.start), length, Permissions::ReadWrite)
        .is_ok_and(|mut slices| slices.all(|slice| slice.is_ok_and(|slice| drop_pages(&slice).is_ok())));
    if dropped {
        Response::Done
    } else {
        tracing::debug!("cannot take memory back that the guest gave up");
        Response::Busy
    }
}
