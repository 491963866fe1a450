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

/// Under the instruction clock no processor time goes by while a node sleeps like that: it is woken when there was none for so long.
const STILL: Duration = Duration::from_secs(5);

/// A busy host gives every process more than this in [`STILL`].
const NOTHING: Duration = Duration::from_millis(10);

const BEGIN: &str = r#"{"execute": "qmp_capabilities"}"#;
/// A key that means nothing alone.
const PRESS: &str = r#"{"execute": "send-key", "arguments": {"keys": [{"type": "qcode", "data": "shift"}]}}"#;

/// Presses the key every second until QEMU ends, whose monitor (QMP) listens there.
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
        press(&connection, u32::MAX).ok();
    });
}

/// Presses the key only when QEMU, which has spent `processor_time`, stands still: otherwise a key would come at another
/// instruction each time. A node that idles under the instruction clock does not stand still, it leaps from timer to timer.
pub(crate) fn wake(monitor: PathBuf, processor_time: impl Fn() -> Option<Duration> + Send + 'static) {
    std::thread::spawn(move || {
        while let Some(before) = processor_time() {
            std::thread::sleep(STILL);
            let Some(after) = processor_time() else { return };
            if after.saturating_sub(before) < NOTHING
                && let Ok(connection) = UnixStream::connect(&monitor)
            {
                eprintln!("node-vm: a node that sleeps for good is woken");
                press(&connection, 1).ok();
            }
        }
    });
}

fn press(mut connection: &UnixStream, times: u32) -> std::io::Result<()> {
    writeln!(connection, "{BEGIN}")?;
    let mut replies = 0;
    for reply in BufReader::new(connection).lines() {
        // A greeting and events come in between.
        if !reply?.contains("\"return\"") {
            continue;
        }
        if replies == times {
            break;
        }
        replies += 1;
        std::thread::sleep(INTERVAL);
        writeln!(connection, "{PRESS}")?;
    }
    Ok(())
}
