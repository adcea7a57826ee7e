//! A network of a test's own, so that bridges, addresses and rules of containers are nobody else's.

use std::{
    fs::File,
    os::fd::AsFd as _,
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{missing, run};

/// A named network namespace. It goes when this is dropped.
struct Named(String);

impl Named {
    fn create() -> Named {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("wharf-test-{}-{number}", process::id());
        run(Command::new("ip").args(["netns", "add", &name])).success();
        Named(name)
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// The network of a thread, for other threads of the same test.
#[derive(Debug)]
pub struct Network(File);

impl Network {
    /// That of this thread.
    ///
    /// # Panics
    ///
    /// Without `/proc`.
    pub fn current() -> Network {
        Network(File::open("/proc/thread-self/ns/net").expect("a thread has a network"))
    }

    /// This thread is in it from now on, with what it starts.
    ///
    /// # Panics
    ///
    /// When it may not.
    pub fn enter(&self) {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("root may enter it");
    }
}

/// Runs a test in a network namespace of its own, in which only the loopback interface is. Everything that the test
/// connects to or starts is in there; files, processes and control groups are the machine's. Skips, and says so, where
/// that needs more than there is.
///
/// # Panics
///
/// When the test does.
pub fn in_network(test: impl FnOnce() + Send) {
    if !rustix::process::geteuid().is_root() {
        missing("root for network namespaces");
        return;
    }
    if Command::new("ip").arg("-V").output().is_err() {
        missing("ip (iproute2)");
        return;
    }
    let named = Named::create();
    // The namespace of a thread: the runner's own threads stay where they are.
    let ended = thread::scope(|scope| {
        let body = || {
            let path = format!("/run/netns/{}", named.0);
            let namespace = File::open(path).expect("it was created");
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may enter it");
            run(Command::new("ip").args(["link", "set", "lo", "up"])).success();
            test();
        };
        thread::Builder::new()
            .name(thread::current().name().unwrap_or("test").to_owned())
            .spawn_scoped(scope, body)
            .expect("a thread")
            .join()
    });
    drop(named);
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}
