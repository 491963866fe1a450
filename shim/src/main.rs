//! The shim's binary.

fn main() {}
