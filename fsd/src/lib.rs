//! The file server of pods that share host directories: `bulkhead-fsd`.
//!
//! It answers FUSE requests, one per packet of a socket, from the one directory that it can see. The requests come
//! from the guest as they are: whoever controls the guest kernel writes them. So the process is jailed to the
//! directory first ([`jail`]), every request is bounded before it is looked at ([`request`]), and only then does a
//! file system library act on it ([`share`]).

pub mod caller;
pub mod freshness;
pub mod jail;
pub mod numbers;
pub mod remembered;
pub mod request;
pub mod serve;
pub mod share;
