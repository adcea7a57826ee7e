//! The C library's file functions, as this binary and everything linked into it call them.
//!
//! A symbol of an executable comes before that of a shared library, so what `std` does to files arrives here
//! first, whoever called `std`: our code or the log's library. Below a directory that is [recorded](Recording)
//! every change is done for real, written down, and may be made to fail. All else passes through.
//!
//! Nothing in this binary waits for a disk: `fsync` answers at once, everywhere. What it would have made
//! durable is in the record, and that is what the tests look at.

#![expect(
    unsafe_code,
    reason = "definitions of C functions with the C library's own signatures, which the system calls below get as they came"
)]

use std::{
    collections::BTreeMap,
    ffi::CStr,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use libc::{c_char, c_int, c_void, iovec, mode_t, off64_t, size_t, ssize_t};

use crate::disk::{Content, Inode, Names, Op, ROOT, durable};

/// What goes wrong, and when: at the n-th call of its kind below the directory, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// From this write or new file on, there is no room. Half of the write that meets it is done first.
    NoSpace { from: usize },
    /// This fsync fails, and what it was for is lost, although later ones succeed: as Linux does it.
    Sync { at: usize },
}

#[derive(Debug)]
struct Session {
    id: usize,
    root: Vec<u8>,
    names: Names,
    ops: Vec<Op>,
    fault: Option<Fault>,
    /// Calls that a fault counts.
    calls: usize,
    failed: bool,
}

#[derive(Clone, Copy, Debug)]
struct OpenFile {
    session: usize,
    inode: Inode,
    append: bool,
}

#[derive(Debug)]
struct Recorded {
    sessions: Vec<Session>,
    files: BTreeMap<c_int, OpenFile>,
    next: usize,
}

static RECORDED: Mutex<Recorded> = Mutex::new(Recorded {
    sessions: Vec::new(),
    files: BTreeMap::new(),
    next: 0,
});

/// How many sessions there are: none is the common case, and costs nothing.
static ACTIVE: AtomicUsize = AtomicUsize::new(0);

fn recorded() -> MutexGuard<'static, Recorded> {
    RECORDED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recorded {
    fn session(&mut self, id: usize) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|session| session.id == id)
    }

    /// The session that a path is below of, and its name there.
    fn below(&mut self, path: *const c_char) -> Option<(&mut Session, String)> {
        // SAFETY: the caller of the C function promised a string that ends in zero.
        let path = unsafe { CStr::from_ptr(path) }.to_bytes();
        self.sessions.iter_mut().find_map(|session| {
            let below = path.strip_prefix(session.root.as_slice())?;
            let below = match below {
                [] => below,
                [b'/', below @ ..] => below,
                _ => return None,
            };
            Some((session, String::from_utf8_lossy(below).into_owned()))
        })
    }

    /// The session of an open file, and the file.
    fn file(&mut self, fd: c_int) -> Option<(&mut Session, OpenFile)> {
        let file = *self.files.get(&fd)?;
        Some((self.session(file.session)?, file))
    }
}

impl Session {
    fn record(&mut self, op: Op) {
        self.names.apply(&op);
        self.ops.push(op);
    }

    /// Whether there is no room for the write or file that comes.
    fn is_full(&mut self) -> bool {
        let Some(Fault::NoSpace { from }) = self.fault else {
            return false;
        };
        self.calls += 1;
        self.failed |= self.calls > from;
        self.calls > from
    }

    /// Whether it is the first that finds no room.
    fn is_filling(&self) -> bool {
        matches!(self.fault, Some(Fault::NoSpace { from }) if self.calls == from + 1)
    }

    fn sync_fails(&mut self) -> bool {
        let Some(Fault::Sync { at }) = self.fault else {
            return false;
        };
        self.calls += 1;
        self.failed |= self.calls > at;
        self.calls == at + 1
    }
}

/// Writes down what happens below a directory, until it is dropped.
#[derive(Debug)]
pub(crate) struct Recording(usize);

impl Recording {
    /// Of an empty directory that exists and is durable itself.
    pub(crate) fn start(root: &Path, fault: Option<Fault>) -> Recording {
        Recording::resume(root, Vec::new(), fault)
    }

    /// Of a directory that has this in it, all of it durable.
    pub(crate) fn start_with(root: &Path, content: &Content) -> Recording {
        Recording::resume(root, durable(content), None)
    }

    /// Goes on where `ops` ended, which `root` shows.
    pub(crate) fn resume(root: &Path, ops: Vec<Op>, fault: Option<Fault>) -> Recording {
        let mut names = Names::default();
        ops.iter().for_each(|op| names.apply(op));
        let mut recorded = recorded();
        let id = recorded.next;
        recorded.next += 1;
        recorded.sessions.push(Session {
            id,
            root: root.as_os_str().as_bytes().to_vec(),
            names,
            ops,
            fault,
            calls: 0,
            failed: false,
        });
        ACTIVE.fetch_add(1, Ordering::SeqCst);
        Recording(id)
    }

    /// From another thread too.
    pub(crate) fn marker(&self) -> impl Fn(Op) + Clone + Send + Sync + 'static {
        let id = self.0;
        move |op| {
            if let Some(session) = recorded().session(id) {
                session.record(op);
            }
        }
    }

    pub(crate) fn mark(&self, op: Op) {
        self.marker()(op);
    }

    /// Whether the fault was met.
    pub(crate) fn has_failed(&self) -> bool {
        recorded()
            .session(self.0)
            .is_some_and(|session| session.failed)
    }

    pub(crate) fn ops(&self) -> Vec<Op> {
        let mut recorded = recorded();
        let session = recorded.session(self.0);
        session
            .map(|session| session.ops.clone())
            .unwrap_or_default()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let mut recorded = recorded();
        recorded.sessions.retain(|session| session.id != self.0);
        ACTIVE.fetch_sub(1, Ordering::SeqCst);
    }
}

fn nobody_looks() -> bool {
    ACTIVE.load(Ordering::SeqCst) == 0
}

fn fail(error: c_int) -> c_int {
    // SAFETY: the address is this thread's own.
    unsafe { *libc::__errno_location() = error };
    -1
}

fn real_open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: as it came.
    unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags, mode) as c_int }
}

/// Of `open`, which is variadic: on Linux a third argument is where it would be without that.
#[unsafe(no_mangle)]
extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    if nobody_looks() {
        return real_open(path, flags, mode);
    }
    let mut recorded = recorded();
    let Some((session, name)) = recorded.below(path) else {
        return real_open(path, flags, mode);
    };
    let known = session.names.get(&name);
    let creates = flags & libc::O_CREAT != 0 && known.is_none();
    if creates && session.is_full() {
        return fail(libc::ENOSPC);
    }
    let fd = real_open(path, flags, mode);
    if fd < 0 {
        return fd;
    }
    let inode = match known {
        Some(inode) => inode,
        None if creates => {
            let inode = session.names.next();
            session.record(Op::Create { name, inode });
            inode
        }
        // It was there before, and is none of ours.
        None => return fd,
    };
    if flags & libc::O_TRUNC != 0 && !creates {
        session.record(Op::SetLength { inode, length: 0 });
    }
    let file = OpenFile {
        session: session.id,
        inode,
        append: flags & libc::O_APPEND != 0,
    };
    recorded.files.insert(fd, file);
    fd
}

#[unsafe(no_mangle)]
extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    open64(path, flags, mode)
}

#[unsafe(no_mangle)]
extern "C" fn close(fd: c_int) -> c_int {
    if !nobody_looks() {
        recorded().files.remove(&fd);
    }
    // SAFETY: as it came.
    unsafe { libc::syscall(libc::SYS_close, fd) as c_int }
}

/// A write at `offset`, or where the file stands, done by `write` with so many of its bytes.
fn written(
    fd: c_int,
    offset: Option<u64>,
    bytes: impl FnOnce() -> Vec<u8>,
    write: impl Fn(Option<&[u8]>) -> ssize_t,
) -> ssize_t {
    if nobody_looks() {
        return write(None);
    }
    let mut recorded = recorded();
    let Some((session, file)) = recorded.file(fd) else {
        drop(recorded);
        return write(None);
    };
    // SAFETY: asks where the file stands or ends; no memory is involved but the buffer right here.
    let offset = offset.unwrap_or_else(|| unsafe {
        let whence = if file.append {
            libc::SEEK_END
        } else {
            libc::SEEK_CUR
        };
        libc::syscall(libc::SYS_lseek, fd, 0, whence) as u64
    });
    let bytes = bytes();
    let done = if session.is_full() {
        let half = bytes.len() / 2;
        if half == 0 || !session.is_filling() {
            return fail(libc::ENOSPC) as ssize_t;
        }
        write(Some(&bytes[..half]))
    } else {
        write(None)
    };
    if let Ok(length) = usize::try_from(done) {
        session.record(Op::Write {
            inode: file.inode,
            offset,
            bytes: Bytes::from(bytes).slice(..length),
        });
    }
    done
}

#[unsafe(no_mangle)]
extern "C" fn write(fd: c_int, buffer: *const c_void, length: size_t) -> ssize_t {
    // SAFETY: the caller promised that many bytes.
    let bytes = || unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), length) }.to_vec();
    written(fd, None, bytes, |cut| {
        let (start, length) = cut.map_or((buffer, length), |cut| (cut.as_ptr().cast(), cut.len()));
        // SAFETY: as it came, or a slice.
        unsafe { libc::syscall(libc::SYS_write, fd, start, length) as ssize_t }
    })
}

#[unsafe(no_mangle)]
extern "C" fn pwrite64(
    fd: c_int,
    buffer: *const c_void,
    length: size_t,
    offset: off64_t,
) -> ssize_t {
    // SAFETY: the caller promised that many bytes.
    let bytes = || unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), length) }.to_vec();
    written(fd, Some(offset as u64), bytes, |cut| {
        let (start, length) = cut.map_or((buffer, length), |cut| (cut.as_ptr().cast(), cut.len()));
        // SAFETY: as it came, or a slice.
        unsafe { libc::syscall(libc::SYS_pwrite64, fd, start, length, offset) as ssize_t }
    })
}

#[unsafe(no_mangle)]
extern "C" fn writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    let bytes = || {
        let mut bytes = Vec::new();
        for at in 0..usize::try_from(count).unwrap_or(0) {
            // SAFETY: the caller promised that many parts, each of which says where its bytes are.
            let part = unsafe {
                let part = &*parts.add(at);
                std::slice::from_raw_parts(part.iov_base.cast::<u8>(), part.iov_len)
            };
            bytes.extend_from_slice(part);
        }
        bytes
    };
    written(fd, None, bytes, |cut| match cut {
        // SAFETY: as it came.
        None => unsafe { libc::syscall(libc::SYS_writev, fd, parts, count) as ssize_t },
        // SAFETY: a slice.
        Some(cut) => unsafe {
            libc::syscall(libc::SYS_write, fd, cut.as_ptr(), cut.len()) as ssize_t
        },
    })
}

#[unsafe(no_mangle)]
extern "C" fn ftruncate64(fd: c_int, length: off64_t) -> c_int {
    // SAFETY: as it came.
    let done = unsafe { libc::syscall(libc::SYS_ftruncate, fd, length) as c_int };
    if !nobody_looks()
        && done == 0
        && let Some((session, file)) = recorded().file(fd)
    {
        session.record(Op::SetLength {
            inode: file.inode,
            length: length as u64,
        });
    }
    done
}

#[unsafe(no_mangle)]
extern "C" fn fsync(fd: c_int) -> c_int {
    if nobody_looks() {
        return 0;
    }
    let mut recorded = recorded();
    let Some((session, file)) = recorded.file(fd) else {
        return 0;
    };
    let inode = file.inode;
    if session.sync_fails() {
        session.record(Op::FailedSync { inode });
        return fail(libc::EIO);
    }
    session.record(Op::Sync { inode });
    0
}

#[unsafe(no_mangle)]
extern "C" fn fdatasync(fd: c_int) -> c_int {
    fsync(fd)
}

#[unsafe(no_mangle)]
extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    let real = || {
        let here = libc::AT_FDCWD;
        // SAFETY: as it came.
        unsafe { libc::syscall(libc::SYS_renameat2, here, from, here, to, 0) as c_int }
    };
    if nobody_looks() {
        return real();
    }
    let mut recorded = recorded();
    let to = recorded.below(to).map(|(_, name)| name);
    let done = real();
    if let (Some((session, from)), Some(to), 0) = (recorded.below(from), to, done) {
        session.record(Op::Rename { from, to });
    }
    done
}

#[unsafe(no_mangle)]
extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: as it came.
    let real = || unsafe { libc::syscall(libc::SYS_unlinkat, libc::AT_FDCWD, path, 0) as c_int };
    if nobody_looks() {
        return real();
    }
    let mut recorded = recorded();
    let done = real();
    if let (Some((session, name)), 0) = (recorded.below(path), done) {
        session.record(Op::Unlink { name });
    }
    done
}

#[unsafe(no_mangle)]
extern "C" fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: as it came.
    let real = || unsafe { libc::syscall(libc::SYS_mkdirat, libc::AT_FDCWD, path, mode) as c_int };
    if nobody_looks() {
        return real();
    }
    let mut recorded = recorded();
    let done = real();
    if let (Some((session, name)), 0) = (recorded.below(path), done) {
        let inode = session.names.next();
        session.record(Op::MakeDir { name, inode });
    }
    done
}

const _: () = assert!(
    ROOT == 0,
    "an open of the directory itself finds it by the empty name"
);
