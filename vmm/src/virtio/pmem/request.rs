//! Flush requests of virtio-pmem. The image is read-only: a flush has nothing to do and succeeds.

use super::spec::{REQUEST_FLUSH, REQUEST_LENGTH, RESPONSE_LENGTH, RESULT_ERROR, RESULT_OK};
use crate::jail::ThreadKind;
use crate::virtio::chain::{Chain, ChainError, Memory};
use crate::virtio::service::Service;

#[derive(Debug)]
pub struct Flush;

impl Service for Flush {
    const THREAD: ThreadKind = ThreadKind::Pmem;

    fn serve(&mut self, memory: &Memory, chain: &Chain) -> u32 {
        answer(memory, chain).map_or(0, |()| RESPONSE_LENGTH)
    }
}

fn answer(memory: &Memory, chain: &Chain) -> Result<(), ChainError> {
    let mut request = [0; REQUEST_LENGTH];
    chain.readable.copy_to(memory, 0, &mut request)?;
    let result = if u32::from_le_bytes(request) == REQUEST_FLUSH { RESULT_OK } else { RESULT_ERROR };
    chain.writable.copy_from(memory, 0, &result.to_le_bytes())
}
