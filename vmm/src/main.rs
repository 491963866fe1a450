//! `bulkhead-vmm`: one virtual machine. Takes no arguments; everything arrives over the control socket.

use bulkhead_vmm::{allocator, control, descriptors, jail};
use std::io;
use std::process::ExitCode;

/// Descriptor 0 is the control socket and 2 the log: one line of text per record, which the shim forwards.
fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).with_target(false).without_time().init();
    if let Err(error) = jail::close_inherited() {
        tracing::error!(%error, "cannot close inherited descriptors");
        return ExitCode::FAILURE;
    }
    descriptors::make_room(io::stdin());
    allocator::use_one_heap();
    match control::run(io::stdin()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "VMM ends");
            ExitCode::FAILURE
        }
    }
}
