//! One connection of a program in the guest to a socket of the node, on one vsock connection to `SOCKET_PORT`.
//!
//! ```text
//! agent → shim    the event SocketConnection
//! shim  → agent   u64 the event's number, little-endian
//! agent → shim    one byte: CLAIMED, or anything else and the connection ends
//! then the bytes of the connection, in both directions; each direction ends by itself
//! ```

use std::time::Duration;

/// The agent's answer when the program still waits.
pub const CLAIMED: u8 = 0;

/// The answer when the number is unknown: the program's connection has waited for longer than [`CLAIM`].
pub const UNKNOWN: u8 = 1;

/// Most connections of a pod at a time. More wait in the guest.
pub const MAX_CONNECTIONS: usize = 64;

/// How long a program's connection waits for the shim.
pub const CLAIM: Duration = Duration::from_secs(10);
