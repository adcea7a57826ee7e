//! The system calls a container may make: an allow-list in the spirit of what container engines agree on.
//!
//! libcontainer without its C library skips a seccomp section with a warning, so the filter is installed here, by
//! the container's own process right before it becomes the program. What is not allowed is `EPERM`; what is newer
//! than this list, and `clone3`, whose flags a filter cannot see, is `ENOSYS`, so that C libraries fall back to
//! calls that can be judged. Calls by another architecture's numbers (32-bit programs) end the process.

mod profile;

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    #[error("no system call filter for the architecture {0:?}")]
    Architecture(&'static str),
    #[error("the system call filter does not compile: {0}")]
    Compile(seccompiler::BackendError),
    #[error("the kernel does not take the system call filter: {0}")]
    Install(seccompiler::Error),
}

/// The filter, ready for [`install`]. Depends on nothing but the architecture.
///
/// # Errors
/// An architecture without a list.
pub fn compile() -> Result<BpfProgram, SeccompError> {
    let arch = std::env::consts::ARCH;
    let target = TargetArch::try_from(arch).map_err(|_| SeccompError::Architecture(arch))?;
    if !matches!(target, TargetArch::x86_64 | TargetArch::aarch64) {
        return Err(SeccompError::Architecture(arch));
    }
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = profile::allowed()
        .iter()
        .map(|number| (*number, Vec::new()))
        .collect();
    for (number, alternatives) in profile::conditional() {
        let alternatives = alternatives
            .into_iter()
            .map(|conditions| {
                let conditions = conditions
                    .into_iter()
                    .map(condition)
                    .collect::<Result<Vec<_>, _>>()?;
                SeccompRule::new(conditions)
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(SeccompError::Compile)?;
        rules.insert(number, alternatives);
    }
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Errno(libc::EPERM as u32),
        SeccompAction::Allow,
        target,
    )
    .map_err(SeccompError::Compile)?;
    let program: BpfProgram = filter.try_into().map_err(SeccompError::Compile)?;
    Ok(not_implemented().into_iter().chain(program).collect())
}

/// Installs `program` for this thread, for good. Also sets no_new_privs, if it is not set yet.
///
/// # Errors
/// The kernel's.
pub fn install(program: &BpfProgram) -> Result<(), SeccompError> {
    seccompiler::apply_filter(program).map_err(SeccompError::Install)
}

/// A test of one argument: (index, comparison).
type Test = (u8, Comparison);

#[derive(Clone, Copy, Debug)]
enum Comparison {
    Equal(u32),
    NotEqual(u32),
    /// None of these bits is set.
    Without(u64),
}

fn condition((argument, comparison): Test) -> Result<SeccompCondition, seccompiler::BackendError> {
    let (width, operator, value) = match comparison {
        Comparison::Equal(value) => (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(value)),
        Comparison::NotEqual(value) => {
            (SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, u64::from(value))
        }
        Comparison::Without(bits) => (SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(bits), 0),
    };
    SeccompCondition::new(argument, width, operator, value)
}

/// `ENOSYS` for `clone3` and for numbers beyond the list, ahead of everything else. The compiled program loads what
/// it needs itself, and jumps are relative, so it can follow as it is. That the architecture is looked at later does
/// no harm: all this does is refuse.
fn not_implemented() -> [sock_filter; 5] {
    let statement = |code: u32, k: u32| sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let jump = |code: u32, k: u32, jt: u8, jf: u8| sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    [
        // The number of the call is the first word of `struct seccomp_data`.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        jump(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            libc::SYS_clone3 as u32,
            1,
            0,
        ),
        jump(
            libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K,
            profile::LAST_KNOWN,
            0,
            1,
        ),
        statement(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
        ),
        // A jump to the next instruction, so that both ways end in the same place.
        statement(libc::BPF_JMP | libc::BPF_JA, 0),
    ]
}

#[cfg(test)]
mod tests;
