//! AdjustClock: the node's clock has been corrected, or the guest's has drifted.

use crate::error::Error;
use crate::guest::identity;
use agent_protocol::agent::{AdjustClockRequest, AdjustClockResponse};

pub(super) fn adjust_clock(request: &AdjustClockRequest) -> Result<AdjustClockResponse, Error> {
    identity::adjust_clock(request.by_ns)?;
    Ok(AdjustClockResponse { time_ns: identity::clock(), ..AdjustClockResponse::default() })
}
