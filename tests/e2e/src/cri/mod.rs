//! Pods, made the way kubelet makes them: through containerd's CRI plugin.
//!
//! [`Pod`] and [`Container`] are what tests write; `rpc` carries the calls, `messages` has CRI's types for whoever
//! needs a field that the builders do not name.

mod container;
mod log;
mod pod;
mod portforward;
mod rpc;
mod sandboxer;
mod session;
mod websocket;

pub use container::{Container, NewContainer};
pub use log::{Line, Log, Stream};
pub use pod::{NewPod, Pod};
pub use portforward::Tunnel;
pub use rpc::{Status, call};
pub use sandboxer::Sandboxer;
pub use session::{Channel, Session};

/// CRI's messages.
pub use cri_protocol as messages;
