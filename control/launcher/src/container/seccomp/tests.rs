use super::*;

/// What the kernel would decide: the few instructions seccompiler and this module use, over `struct seccomp_data`.
fn run(program: &[sock_filter], number: u32, args: [u64; 6]) -> u32 {
    let arch: u32 = if cfg!(target_arch = "x86_64") {
        0xC000_003E
    } else {
        0xC000_00B7
    };
    run_on(program, number, arch, args)
}

fn run_on(program: &[sock_filter], number: u32, arch: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_ne_bytes());
    data.extend(arch.to_ne_bytes());
    data.extend(0u64.to_ne_bytes());
    args.iter().for_each(|arg| data.extend(arg.to_ne_bytes()));
    let (mut at, mut accumulator) = (0usize, 0u32);
    loop {
        let sock_filter { code, jt, jf, k } = program[at];
        at += 1;
        match u32::from(code) {
            c if c == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                let word = &data[k as usize..k as usize + 4];
                accumulator = u32::from_ne_bytes(word.try_into().unwrap());
            }
            c if c == libc::BPF_ALU | libc::BPF_AND | libc::BPF_K => accumulator &= k,
            c if c == libc::BPF_JMP | libc::BPF_JA => at += k as usize,
            c if c & 7 == libc::BPF_JMP => {
                let holds = match c & 0xf0 {
                    libc::BPF_JEQ => accumulator == k,
                    libc::BPF_JGT => accumulator > k,
                    libc::BPF_JGE => accumulator >= k,
                    other => panic!("jump {other:#x}"),
                };
                at += usize::from(if holds { jt } else { jf });
            }
            c if c & 7 == libc::BPF_RET => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

fn judge(number: i64, args: [u64; 6]) -> u32 {
    run(&compile().unwrap(), number as u32, args)
}

#[test]
fn programs_can_work() {
    for number in [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_openat,
        libc::SYS_execve,
        libc::SYS_mmap,
        libc::SYS_futex,
        libc::SYS_epoll_pwait,
        libc::SYS_accept4,
        libc::SYS_exit_group,
        libc::SYS_rseq,
    ] {
        assert_eq!(judge(number, [0; 6]), ALLOW, "{number}");
    }
}

#[test]
fn what_reaches_beyond_the_container_is_refused() {
    for number in [
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_ptrace,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_swapon,
        libc::SYS_acct,
        libc::SYS_userfaultfd,
        libc::SYS_open_by_handle_at,
        libc::SYS_io_uring_setup,
        libc::SYS_move_mount,
        libc::SYS_fsopen,
        libc::SYS_open_tree,
        libc::SYS_mount_setattr,
        libc::SYS_process_vm_writev,
        libc::SYS_quotactl,
        libc::SYS_syslog,
    ] {
        assert_eq!(judge(number, [0; 6]), EPERM, "{number}");
    }
}

#[test]
fn clone_may_not_make_namespaces() {
    let clone = |flags: i32| judge(libc::SYS_clone, [flags as u32 as u64, 0, 0, 0, 0, 0]);
    assert_eq!(clone(libc::SIGCHLD), ALLOW);
    let thread = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_THREAD;
    assert_eq!(clone(thread | libc::CLONE_SIGHAND), ALLOW);
    for namespace in [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWCGROUP,
    ] {
        assert_eq!(clone(libc::SIGCHLD | namespace), EPERM, "{namespace:#x}");
    }
}

#[test]
fn what_is_newer_than_the_list_does_not_exist() {
    assert_eq!(judge(libc::SYS_clone3, [0; 6]), ENOSYS);
    assert_eq!(judge(i64::from(profile::LAST_KNOWN) + 1, [0; 6]), ENOSYS);
    assert_eq!(judge(9_999, [0; 6]), ENOSYS);
    // x32 numbers have a bit of their own.
    assert_eq!(judge(0x4000_0000 | libc::SYS_read, [0; 6]), ENOSYS);
}

#[test]
fn sockets_of_the_hypervisor_are_refused_and_others_are_not() {
    let socket = |domain: i32| judge(libc::SYS_socket, [domain as u64, 1, 0, 0, 0, 0]);
    assert_eq!(socket(libc::AF_INET), ALLOW);
    assert_eq!(socket(libc::AF_INET6), ALLOW);
    assert_eq!(socket(libc::AF_UNIX), ALLOW);
    assert_eq!(socket(libc::AF_NETLINK), ALLOW);
    assert_eq!(socket(libc::AF_VSOCK), EPERM);
    // The kernel reads 32 bits of it.
    let hidden = (1u64 << 32) | libc::AF_VSOCK as u64;
    assert_eq!(judge(libc::SYS_socket, [hidden, 1, 0, 0, 0, 0]), EPERM);
}

#[test]
fn personality_only_asks_or_is_plain() {
    let personality = |value: u64| judge(libc::SYS_personality, [value, 0, 0, 0, 0, 0]);
    assert_eq!(personality(0), ALLOW);
    assert_eq!(personality(0xffff_ffff), ALLOW);
    assert_eq!(personality(0x0004_0000), EPERM, "ADDR_NO_RANDOMIZE");
}

#[test]
fn another_architecture_ends_the_process() {
    let i386 = 0x4000_0003;
    let verdict = run_on(&compile().unwrap(), 4, i386, [0; 6]);
    assert_eq!(verdict, libc::SECCOMP_RET_KILL_PROCESS);
}

#[test]
fn no_call_is_in_both_lists_or_twice() {
    let mut numbers = profile::allowed();
    numbers.extend(profile::conditional().into_iter().map(|(number, _)| number));
    let count = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), count);
    assert!(
        numbers
            .iter()
            .all(|number| *number <= i64::from(profile::LAST_KNOWN))
    );
}
