//! virtio over PCI, modern interface only (virtio 1.3, section 4.1).
//!
//! ```text
//!  vCPU threads                         main thread                    device thread
//!  ────────────                         ───────────                    ─────────────
//!  register access ──► common registers
//!  DRIVER_OK, reset, MSI-X ──► attention ──► start, stop, routes ────► queues
//!  kick ─────────────── ioeventfd ───────────────────────────────────► kick
//!                       irqfd ◄──────────────────────────────────────── interrupt
//! ```
//!
//! A vCPU thread only changes registers and asks the main thread for the rest, so that its seccomp filter can
//! forbid everything but running the guest. The driver waits for none of this: it reads the status register back
//! until a reset is done, and kicks before the start are kept by the eventfds.

mod attention;
mod common;
mod function;
mod interrupt;
mod layout;
mod state;

pub use attention::{Attention, Wanted};
pub use function::{Doorbells, VirtioFunction};
pub use state::{FunctionState, StateError};
