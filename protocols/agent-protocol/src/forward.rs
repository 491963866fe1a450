//! One TCP connection to a port of the pod, on one vsock connection to `FORWARD_PORT`.
//!
//! ```text
//! shim  → agent   u16 port, little-endian
//! agent → shim    one byte: CONNECTED, or anything else and the connection ends
//! then the bytes of the TCP connection, in both directions; each direction ends by itself
//! ```

/// The agent's answer when something in the guest took the connection.
pub const CONNECTED: u8 = 0;

/// The answer when nothing listens on the port.
pub const REFUSED: u8 = 1;

/// Most connections of a pod at a time, on both ends. More wait.
pub const MAX_CONNECTIONS: usize = 256;
