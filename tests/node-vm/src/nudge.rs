//! Keeps an emulated node from sleeping through an interrupt.
//!
//! While a guest runs inside the node, QEMU's emulation of SVM changes the processor's set of pending requests without the lock
//! under which devices add theirs, so one may get lost (seen with 10.0: an idle processor with an interrupt in its local
//! APIC's IRR, interrupts enabled, and no request pending). The node then sleeps until some device raises the next
//! interrupt, which may be never. A key that is pressed every second is such an interrupt.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a node may sleep too long.
const INTERVAL: Duration = Duration::from_secs(1);

const BEGIN: &str = r#"{"execute": "qmp_capabilities"}"#;
/// A key that means nothing alone.
const PRESS: &str = r#"{"execute": "send-key", "arguments": {"keys": [{"type": "qcode", "data": "shift"}]}}"#;

/// Presses the key until QEMU ends, whose monitor (QMP) listens there.
pub(crate) fn start(monitor: PathBuf) {
    std::thread::spawn(move || {
        let connection = loop {
            match UnixStream::connect(&monitor) {
                Ok(connection) => break connection,
                // QEMU has not begun, or has ended and the directory is gone.
                Err(_) if monitor.parent().is_some_and(Path::exists) => std::thread::sleep(INTERVAL),
                Err(_) => return,
            }
        };
        press(&connection).ok();
    });
}

fn press(mut connection: &UnixStream) -> std::io::Result<()> {
    writeln!(connection, "{BEGIN}")?;
    for reply in BufReader::new(connection).lines() {
        // A greeting and events come in between.
        if reply?.contains("\"return\"") {
            std::thread::sleep(INTERVAL);
            writeln!(connection, "{PRESS}")?;
        }
    }
    Ok(())
}
