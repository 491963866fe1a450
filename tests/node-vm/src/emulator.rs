//! Which QEMU emulates a node: Debian's, without a fault that makes guests hang.
//!
//! QEMU 10.0 delivers an interrupt that KVM injects into a guest (EVENTINJ) a second time when the instruction budget of
//! `-icount` ends before the guest's next exit: `helper_vmrun` delivers it and leaves `exception_index` set, which nobody needs
//! after that. The second delivery enters a handler that runs already, and the guest waits for its own lock. `docs/status.md`
//! has the proof. Building QEMU takes longer than all tests, so a copy of the installed program lacks the one store.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const QEMU: &str = "qemu-system-x86_64";

/// The store to `exception_index`, and what follows it in `helper_vmrun` of Debian's 10.0.2: `exception_is_int = 0` and
/// `exception_next_eip = -1`. The offsets in it are of that build's structures.
const FAULT: [u8; 27] = [
    0x89, 0xb3, 0x10, 0xd7, 0xff, 0xff, // mov %esi,-0x28f0(%rbx)
    0xc7, 0x83, 0xe4, 0x33, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // movl $0,0x33e4(%rbx)
    0x48, 0xc7, 0x83, 0xe8, 0x33, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, // movq $-1,0x33e8(%rbx)
];
const STORE_LENGTH: usize = 6;
const NO_OP: u8 = 0x90;

/// A program that emulates, and where it finds its firmware.
#[derive(Debug)]
pub(crate) struct Emulator {
    pub program: PathBuf,
    pub firmware: Vec<PathBuf>,
}

impl Emulator {
    /// QEMU as it is installed.
    pub(crate) fn installed() -> Self {
        Emulator { program: QEMU.into(), firmware: Vec::new() }
    }

    /// A copy in `directory` without the fault, or the installed one, with a warning, when its bytes are not known.
    ///
    /// A file that any process has open for writing cannot be run: between copying and running there must be time for what other
    /// threads have forked meanwhile to execute its program.
    pub(crate) fn without_fault(directory: &Path) -> Result<Self> {
        let installed = find(QEMU, &std::env::var_os("PATH").unwrap_or_default())?;
        let mut program = std::fs::read(&installed).with_context(|| format!("cannot read {}", installed.display()))?;
        if !mend(&mut program) {
            eprintln!(
                "node-vm: {} is not the build whose fault is known (docs/status.md): guests may hang, most of all under the \
                 instruction clock",
                installed.display()
            );
            return Ok(Emulator::installed());
        }
        let copy = directory.join(QEMU);
        std::fs::write(&copy, program).with_context(|| format!("cannot write {}", copy.display()))?;
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755))?;
        // QEMU looks for its firmware relative to where it lies itself.
        Ok(Emulator { program: copy, firmware: firmware(&installed)? })
    }
}

/// Takes the fault out, if it is there exactly once.
fn mend(program: &mut [u8]) -> bool {
    let mut places = program.windows(FAULT.len()).enumerate().filter(|(_, bytes)| *bytes == FAULT);
    let (Some((place, _)), None) = (places.next(), places.next()) else { return false };
    program[place..place + STORE_LENGTH].fill(NO_OP);
    true
}

fn find(name: &str, path: &OsStr) -> Result<PathBuf> {
    let found = std::env::split_paths(path).map(|directory| directory.join(name)).find(|file| file.is_file());
    found.with_context(|| format!("{name} is not installed: run tools/setup"))
}

/// Where an installed QEMU looks for firmware.
fn firmware(qemu: &Path) -> Result<Vec<PathBuf>> {
    let output =
        Command::new(qemu).args(["-L", "help"]).output().with_context(|| format!("cannot run {}", qemu.display()))?;
    if !output.status.success() {
        bail!("{} -L help failed: {}", qemu.display(), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_store_is_taken_out() {
        let mut program = [&[1, 2, 3][..], &FAULT, &[4, 5]].concat();
        assert!(mend(&mut program));
        assert_eq!(program[..3], [1, 2, 3]);
        assert_eq!(program[3..9], [NO_OP; STORE_LENGTH]);
        assert_eq!(program[9..], [&FAULT[STORE_LENGTH..], &[4, 5]].concat());
    }

    #[test]
    fn unknown_and_ambiguous_programs_stay_as_they_are() {
        for original in [vec![0; 100], FAULT.repeat(2), FAULT[..20].to_vec()] {
            let mut program = original.clone();
            assert!(!mend(&mut program));
            assert_eq!(program, original);
        }
    }

    #[test]
    fn a_program_that_is_not_installed_is_named() {
        let error = find("no-such-emulator", OsStr::new("/nowhere:/bin")).unwrap_err().to_string();
        assert!(error.starts_with("no-such-emulator is not installed"), "{error}");
    }
}
