//! Tiny guests in real mode.
