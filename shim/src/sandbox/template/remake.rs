//! A template that does not work is made anew by the pod that finds out, so that a node with another kernel or processor than
//! yesterday's needs nobody to come by.

use super::RECORD;
use crate::args::ENSURE_TEMPLATE;
use crate::sandbox::host::Host;
use std::fs::{self, Metadata};
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// A template that does not work although it is this young would not be better a second time. Each attempt costs a boot.
const YOUNG: Duration = Duration::from_secs(3600);

/// Has the template made anew, by a process that outlives this one. Several shims may ask at once: builders exclude each other. Pods boot without a warning until it is there.
pub(in crate::sandbox) fn remake(host: &Host) {
    match remove_old(&host.templates().join(RECORD)) {
        Ok(true) => {}
        Ok(false) => return,
        Err(error) => return tracing::warn!(%error, "the template that does not work stays"),
    }
    let builder = std::env::current_exe().and_then(|program| {
        let mut command = Command::new(program);
        command.arg(ENSURE_TEMPLATE).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.process_group(0).spawn()
    });
    match builder {
        Ok(mut builder) => {
            tracing::info!("a template is being made");
            tokio::spawn(async move {
                match builder.wait().await {
                    Ok(status) if status.success() => tracing::info!("a template has been made"),
                    Ok(status) => {
                        tracing::warn!(%status, "no template was made, so that pods boot: run `bulkhead template build`")
                    }
                    Err(error) => tracing::warn!(%error, "it is not known whether a template was made"),
                }
            });
        }
        Err(error) => tracing::warn!(%error, "no template is made: run `bulkhead template build`"),
    }
}

/// Whether there was one to give up.
fn remove_old(record: &Path) -> io::Result<bool> {
    match fs::metadata(record) {
        Ok(metadata) if is_young(&metadata) => return Ok(false),
        Ok(_) => {}
        // Another pod was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    fs::remove_file(record).map(|()| true)
}

/// A time to come is not trusted.
fn is_young(metadata: &Metadata) -> bool {
    metadata.modified().is_ok_and(|time| time.elapsed().is_ok_and(|age| age < YOUNG))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn only_an_old_template_is_given_up_and_once() {
        let directory = tempfile::tempdir().unwrap();
        let record = directory.path().join(RECORD);
        assert!(!remove_old(&record).unwrap());
        fs::write(&record, "{}").unwrap();
        assert!(!remove_old(&record).unwrap());
        let touch = |time| fs::File::options().write(true).open(&record).unwrap().set_modified(time).unwrap();
        touch(SystemTime::now() - 2 * YOUNG);
        assert!(remove_old(&record).unwrap());
        assert!(!record.exists());
        fs::write(&record, "{}").unwrap();
        touch(SystemTime::now() + 2 * YOUNG);
        assert!(remove_old(&record).unwrap());
    }
}
