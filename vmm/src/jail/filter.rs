//! Installs the filter of a thread.

use super::{ThreadKind, rules, tree};
use seccompiler::{BackendError, BpfProgram, BpfProgramRef, SeccompAction, SeccompFilter, TargetArch};
use std::collections::BTreeMap;
use std::io;

/// Confines the calling thread. A call that the rules do not have ends the process at once: only code that an
/// attacker has taken over makes one.
pub fn install(kind: ThreadKind) -> io::Result<()> {
    if kind == ThreadKind::Main {
        apply(&no_clone3().map_err(io::Error::other)?)?;
    }
    apply(&tree::program(rules::of(kind)))
}

fn apply(program: BpfProgramRef<'_>) -> io::Result<()> {
    seccompiler::apply_filter(program).map_err(|error| match error {
        seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
        other => io::Error::other(other),
    })
}

/// Makes the C library start threads with clone(2), whose flags a filter can see. The flags of clone3(2) lie in
/// memory, where they could say "process" or "user namespace".
fn no_clone3() -> Result<BpfProgram, BackendError> {
    let table = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    SeccompFilter::new(table, SeccompAction::Allow, missing, TargetArch::x86_64)?.try_into()
}
