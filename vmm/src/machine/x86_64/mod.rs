//! What only an x86-64 machine has.

pub mod boot_params;
pub mod cpuid;
pub mod layout;
pub mod mptable;
pub mod registers;
