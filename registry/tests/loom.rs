//! The cells of the watches, in every order in which threads may go through them.
//!
//! Compiles the sources of the cells with loom's locks in the place of the standard library's, and plays small
//! scenes: each ends only if nobody waits for a change that has been, and loom says so when nobody can go on.

#[path = "../src/watch/cells.rs"]
mod cells;
#[path = "../src/watch/prefixes.rs"]
mod prefixes;
mod sync {
    pub(super) use std::sync::PoisonError;

    pub(super) use loom::sync::{Arc, Mutex, MutexGuard};
}

use std::{
    future,
    hash::{BuildHasherDefault, DefaultHasher},
    task::{Context, Poll, Waker},
};

use cells::Interest;
use loom::{
    future::block_on,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};
use prefixes::PrefixLengths;

/// Not at random: loom plays each scene again and again, and expects the same of it.
type Cells = cells::Cells<&'static str, BuildHasherDefault<DefaultHasher>>;

const KEY: &str = "web";

/// What readers load, and the cells. The order of the loads and stores of the view itself is not what any of this
/// relies on.
struct Scene {
    cells: Cells,
    lengths: PrefixLengths,
    view: AtomicUsize,
}

impl Scene {
    fn new() -> Arc<Scene> {
        Arc::new(Scene {
            cells: Cells::with_hasher(BuildHasherDefault::default()),
            lengths: PrefixLengths::default(),
            view: AtomicUsize::new(0),
        })
    }

    fn write(&self, view: usize) {
        self.view.store(view, Ordering::Relaxed);
        self.cells.wake(&KEY);
    }

    /// Reads until the view is as new as this.
    fn read_until(&self, view: usize) {
        let mut interest = self.cells.enter(&KEY);
        self.wait_until(view, &mut interest);
        self.cells.leave(&KEY, &mut interest);
    }

    fn wait_until(&self, view: usize, interest: &mut Interest) {
        while self.view.load(Ordering::Relaxed) < view {
            block_on(future::poll_fn(|context| interest.poll_changed(context)));
        }
    }

    /// Nobody is interested any more.
    fn is_empty(&self) -> bool {
        self.cells.count() == 0 && !self.cells.contains(&KEY)
    }
}

/// Plays it in every order of at most so many changes between threads that could have gone on.
fn model(preemptions: usize, scene: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(scene);
}

fn spawn(scene: &Arc<Scene>, act: impl FnOnce(&Scene) + 'static) -> thread::JoinHandle<()> {
    let scene = scene.clone();
    thread::spawn(move || act(&scene))
}

#[test]
fn a_reader_that_saw_the_old_view_is_woken() {
    model(5, || {
        let scene = Scene::new();
        let writer = spawn(&scene, |scene| scene.write(1));
        scene.read_until(1);
        writer.join().unwrap();
        assert!(scene.is_empty());
    });
}

/// Whether a reader that saw the old view may have nothing to wake it, in any order.
fn may_miss(watches_first: bool) -> bool {
    let missed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let found = missed.clone();
    model(5, move || {
        let scene = Scene::new();
        let writer = spawn(&scene, |scene| scene.write(1));
        let load = || scene.view.load(Ordering::Relaxed);
        let before = (!watches_first).then(load);
        let mut interest = scene.cells.enter(&KEY);
        let seen = before.unwrap_or_else(load);
        writer.join().unwrap();
        let mut context = Context::from_waker(Waker::noop());
        if seen == 0 && interest.poll_changed(&mut context).is_pending() {
            found.store(true, Ordering::Relaxed);
        }
        scene.cells.leave(&KEY, &mut interest);
    });
    missed.load(Ordering::Relaxed)
}

#[test]
fn who_loads_the_view_before_it_watches_may_miss_a_change_and_no_other() {
    assert!(may_miss(false), "loom would not notice");
    assert!(!may_miss(true));
}

#[test]
fn no_change_between_two_waits_is_missed() {
    model(4, || {
        let scene = Scene::new();
        let writer = spawn(&scene, |scene| {
            scene.write(1);
            scene.write(2);
        });
        let mut interest = scene.cells.enter(&KEY);
        scene.wait_until(1, &mut interest);
        scene.wait_until(2, &mut interest);
        scene.cells.leave(&KEY, &mut interest);
        writer.join().unwrap();
        assert!(scene.is_empty());
    });
}

#[test]
fn everybody_is_woken_also_while_others_leave() {
    model(3, || {
        let scene = Scene::new();
        let waiting = spawn(&scene, |scene| scene.read_until(1));
        let leaving = spawn(&scene, |scene| {
            let mut interest = scene.cells.enter(&KEY);
            let _ = interest.poll_changed(&mut Context::from_waker(Waker::noop()));
            scene.cells.leave(&KEY, &mut interest);
        });
        scene.write(1);
        waiting.join().unwrap();
        leaving.join().unwrap();
        assert!(scene.is_empty(), "a cell outlives its last watcher");
    });
}

#[test]
fn who_comes_when_the_last_one_leaves_is_woken() {
    model(3, || {
        let scene = Scene::new();
        let mut last = scene.cells.enter(&KEY);
        let waiting = spawn(&scene, |scene| scene.read_until(1));
        let writer = spawn(&scene, |scene| scene.write(1));
        scene.cells.leave(&KEY, &mut last);
        waiting.join().unwrap();
        writer.join().unwrap();
        assert!(scene.is_empty());
    });
}

#[test]
fn two_writers_wake_for_what_either_of_them_wrote() {
    model(3, || {
        let scene = Scene::new();
        let writers = [(); 2].map(|()| {
            spawn(&scene, |scene| {
                scene.view.fetch_add(1, Ordering::Relaxed);
                scene.cells.wake(&KEY);
            })
        });
        scene.read_until(2);
        for writer in writers {
            writer.join().unwrap();
        }
        assert!(scene.is_empty());
    });
}

#[test]
fn a_wait_that_was_given_up_takes_nothing_from_the_next_one() {
    model(4, || {
        let scene = Scene::new();
        let writer = spawn(&scene, |scene| scene.write(1));
        let mut interest = scene.cells.enter(&KEY);
        if scene.view.load(Ordering::Relaxed) == 0 {
            let given_up = interest.poll_changed(&mut Context::from_waker(Waker::noop()));
            if given_up.is_ready() {
                assert_eq!(scene.view.load(Ordering::Relaxed), 1);
            }
            // The waker that nobody listens to is replaced.
            scene.wait_until(1, &mut interest);
        }
        scene.cells.leave(&KEY, &mut interest);
        writer.join().unwrap();
        assert!(scene.is_empty());
    });
}

#[test]
fn a_change_is_seen_once() {
    model(4, || {
        let scene = Scene::new();
        let mut interest = scene.cells.enter(&KEY);
        let writer = spawn(&scene, |scene| scene.write(1));
        scene.wait_until(1, &mut interest);
        writer.join().unwrap();
        let mut context = Context::from_waker(Waker::noop());
        // Either the view was there before it was woken for, or it was woken.
        let _ = interest.poll_changed(&mut context);
        assert_eq!(interest.poll_changed(&mut context), Poll::Pending);
        scene.cells.leave(&KEY, &mut interest);
        assert!(scene.is_empty());
    });
}

#[test]
fn all_are_woken_when_the_state_is_replaced() {
    model(3, || {
        let scene = Scene::new();
        let waiting = spawn(&scene, |scene| scene.read_until(1));
        scene.view.store(1, Ordering::Relaxed);
        scene.cells.wake_all();
        waiting.join().unwrap();
        assert!(scene.is_empty());
    });
}

#[test]
fn a_prefix_whose_length_the_writer_does_not_know_has_the_new_view() {
    model(4, || {
        let scene = Scene::new();
        let writer = spawn(&scene, |scene| {
            scene.view.store(1, Ordering::Relaxed);
            for length in scene.lengths.up_to("web/1".len()) {
                scene.cells.wake(&&"web/1"[..length]);
            }
        });
        scene.lengths.add(KEY.len());
        scene.read_until(1);
        scene.lengths.remove(KEY.len());
        writer.join().unwrap();
        assert!(scene.is_empty() && scene.lengths.up_to(100).is_empty());
    });
}
