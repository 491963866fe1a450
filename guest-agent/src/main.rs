//! The guest's `/init`.

use bulkhead_agent::{guest, init, pids};
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(pids::HOLD) {
        return pids::hold();
    }
    if std::process::id() != 1 {
        eprintln!("bulkhead-agent: this is PID 1 of a Bulkhead guest and does nothing elsewhere");
        return ExitCode::FAILURE;
    }
    init::run(guest::run)
}
