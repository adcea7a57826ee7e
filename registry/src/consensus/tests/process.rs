//! Servers as processes, of which a test has several: each is killed, stopped and continued by itself, throws dice that
//! fall the same way again, and has a clock that may be wrong.
//!
//! It is the runtime of this room under test ([`super::super::runtime`]). What a task of a process begins belongs to
//! that process, and is polled only while it runs. Its timers run on while it is stopped, as in reality: all that are
//! due have run out when it goes on. What belongs to no process runs on plain tokio.

use std::{
    future::Future,
    ops::{Add, AddAssign, Sub, SubAssign},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::Stream;
use openraft::{AsyncRuntime, OptionalSend, impls::TokioRuntime};
use tokio::task::{AbortHandle, JoinError, JoinHandle};
use wharf_tests::Chance;

use super::watch;

tokio::task_local! {
    /// Whose code runs.
    static CURRENT: Arc<Process>;
}

fn current() -> Option<Arc<Process>> {
    CURRENT.try_with(Arc::clone).ok()
}

const RUNS: u8 = 0;
const STOPPED: u8 = 1;
const KILLED: u8 = 2;

#[derive(Debug)]
pub(in super::super) struct Process {
    condition: AtomicU8,
    state: Mutex<State>,
    chance: Mutex<Chance>,
    clock: Clock,
    killed: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    /// What wants to go on and must not.
    parked: Vec<Waker>,
    tasks: Vec<AbortHandle>,
    /// When it was stopped.
    stopped: Option<tokio::time::Instant>,
    /// For how long it was, in all.
    stood_still: Duration,
}

/// What is wrong with the clock of a process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    started: tokio::time::Instant,
    /// How much too fast it goes, in millionths.
    gains: i64,
    /// It stands still while the process does.
    stops: bool,
}

impl Clock {
    pub(super) fn right() -> Clock {
        Clock {
            started: tokio::time::Instant::now(),
            gains: 0,
            stops: false,
        }
    }

    pub(super) fn gaining(self, gains: i64) -> Clock {
        Clock { gains, ..self }
    }

    pub(super) fn stopping(self) -> Clock {
        Clock {
            stops: true,
            ..self
        }
    }

    fn scaled(duration: Duration, numerator: i64, denominator: i64) -> Duration {
        let nanos = duration.as_nanos() * numerator as u128 / denominator as u128;
        Duration::from_nanos(nanos as u64)
    }
}

const MILLION: i64 = 1_000_000;

impl Process {
    pub(super) fn new(seed: u64, clock: Clock) -> Arc<Process> {
        Arc::new(Process {
            condition: AtomicU8::new(RUNS),
            state: Mutex::default(),
            chance: Mutex::new(Chance::new(seed)),
            clock,
            killed: watch::Sender::new(false),
        })
    }

    fn is(&self, condition: u8) -> bool {
        self.condition.load(Ordering::Relaxed) == condition
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.is(STOPPED)
    }

    pub(super) fn is_killed(&self) -> bool {
        self.is(KILLED)
    }

    /// SIGSTOP.
    pub(super) fn stop(&self) {
        let mut state = self.state.lock().unwrap();
        if self.is(RUNS) {
            self.condition.store(STOPPED, Ordering::Relaxed);
            state.stopped = Some(tokio::time::Instant::now());
        }
    }

    /// SIGCONT.
    pub(super) fn go_on(&self) {
        let mut parked = {
            let mut state = self.state.lock().unwrap();
            if !self.is(STOPPED) {
                return;
            }
            self.condition.store(RUNS, Ordering::Relaxed);
            if let Some(since) = state.stopped.take() {
                state.stood_still += since.elapsed();
            }
            std::mem::take(&mut state.parked)
        };
        // Whatever has come meanwhile is found in any order.
        let mut chance = self.chance.lock().unwrap();
        for at in (1..parked.len()).rev() {
            parked.swap(at, chance.below(at as u64 + 1) as usize);
        }
        drop(chance);
        parked.into_iter().for_each(Waker::wake);
    }

    /// SIGKILL: nothing of it is polled any more.
    pub(super) fn kill(&self) {
        let (parked, tasks) = {
            let mut state = self.state.lock().unwrap();
            self.condition.store(KILLED, Ordering::Relaxed);
            (
                std::mem::take(&mut state.parked),
                std::mem::take(&mut state.tasks),
            )
        };
        tasks.iter().for_each(AbortHandle::abort);
        self.killed.send_replace(true);
        parked.into_iter().for_each(Waker::wake);
    }

    /// A task of this process.
    pub(super) fn spawn<F>(self: &Arc<Self>, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let handle = tokio::spawn(self.within(future));
        if self.is(KILLED) {
            handle.abort();
            return handle;
        }
        let mut state = self.state.lock().unwrap();
        if state.tasks.len() >= 64 && state.tasks.len() == state.tasks.capacity() {
            state.tasks.retain(|task| !task.is_finished());
        }
        state.tasks.push(handle.abort_handle());
        handle
    }

    /// Something that this process does for whoever awaits it; `None` if it is killed meanwhile.
    pub(super) async fn run<F: Future>(self: &Arc<Self>, future: F) -> Option<F::Output> {
        let mut killed = self.killed.subscribe();
        tokio::select! {
            biased;
            _ = killed.wait_for(|killed| *killed) => None,
            output = self.within(future) => Some(output),
        }
    }

    /// A future or stream of this process: polled only while it runs, and as its own.
    pub(super) fn within<F>(self: &Arc<Self>, inner: F) -> Within<F> {
        Within {
            process: self.clone(),
            inner: Box::pin(inner),
        }
    }

    /// Whether it may be polled; otherwise it is woken when it may.
    fn passes(&self, context: &Context<'_>) -> bool {
        if self.is(RUNS) {
            return true;
        }
        let mut state = self.state.lock().unwrap();
        let waker = context.waker();
        if self.is(STOPPED) && !state.parked.iter().any(|parked| parked.will_wake(waker)) {
            state.parked.push(waker.clone());
        }
        false
    }

    /// What its clock says.
    fn now(&self) -> Instant {
        let clock = &self.clock;
        let mut passed = clock.started.elapsed();
        if clock.stops {
            passed = passed.saturating_sub(self.state.lock().unwrap().stood_still);
        }
        Instant(clock.started + Clock::scaled(passed, MILLION + clock.gains, MILLION))
    }

    /// How long it takes until its clock has advanced by so much.
    fn takes(&self, duration: Duration) -> Duration {
        Clock::scaled(duration, MILLION, MILLION + self.clock.gains)
    }
}

pub(super) struct Within<F> {
    process: Arc<Process>,
    inner: Pin<Box<F>>,
}

impl<F: Future> Future for Within<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Within { process, inner } = self.get_mut();
        if !process.passes(context) {
            return Poll::Pending;
        }
        CURRENT.sync_scope(process.clone(), || inner.as_mut().poll(context))
    }
}

impl<S: Stream> Stream for Within<S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let Within { process, inner } = self.get_mut();
        if !process.passes(context) {
            return Poll::Pending;
        }
        CURRENT.sync_scope(process.clone(), || inner.as_mut().poll_next(context))
    }
}

/// Blocking work, which takes a while. In a process it is done by the clock of the test, and by nobody else's.
pub(in super::super) async fn spawn_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    let Some(process) = current() else {
        return tokio::task::spawn_blocking(work).await;
    };
    let takes = process.chance.lock().unwrap().millis(0, 50);
    tokio::time::sleep(takes).await;
    Ok(work())
}

// === the runtime ===

/// A reading of the clock of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct Instant(tokio::time::Instant);

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, duration: Duration) -> Instant {
        Instant(self.0 + duration)
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        self.0 += duration;
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;

    fn sub(self, duration: Duration) -> Instant {
        Instant(self.0 - duration)
    }
}

impl SubAssign<Duration> for Instant {
    fn sub_assign(&mut self, duration: Duration) {
        self.0 -= duration;
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Instant) -> Duration {
        self.0 - earlier.0
    }
}

impl openraft::Instant for Instant {
    fn now() -> Instant {
        match current() {
            Some(process) => process.now(),
            None => Instant(tokio::time::Instant::now()),
        }
    }
}

/// The dice of the process that throws them.
pub(in super::super) struct Dice(Option<Arc<Process>>);

impl rand::TryRng for Dice {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        self.try_next_u64().map(|number| number as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        match &self.0 {
            Some(process) => Ok(process.chance.lock().unwrap().below(u64::MAX)),
            None => rand::rng().try_next_u64(),
        }
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        for chunk in bytes.chunks_mut(8) {
            let number = self.try_next_u64()?.to_le_bytes();
            chunk.copy_from_slice(&number[..chunk.len()]);
        }
        Ok(())
    }
}

#[derive(Debug)]
pub(in super::super) struct Runtime(TokioRuntime);

fn duration_until(deadline: Instant) -> Duration {
    let now = <Instant as openraft::Instant>::now();
    deadline.0.saturating_duration_since(now.0)
}

fn takes(duration: Duration) -> Duration {
    current().map_or(duration, |process| process.takes(duration))
}

impl AsyncRuntime for Runtime {
    type JoinError = JoinError;
    type JoinHandle<T: OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = Instant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = tokio::time::Timeout<T>;
    type ThreadLocalRng = Dice;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = watch::InOrder;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        match current() {
            Some(process) => process.spawn(future),
            None => tokio::spawn(future),
        }
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        tokio::time::sleep(takes(duration))
    }

    fn sleep_until(deadline: Instant) -> Self::Sleep {
        Self::sleep(duration_until(deadline))
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        tokio::time::timeout(takes(duration), future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        Self::timeout(duration_until(deadline), future)
    }

    fn is_panic(error: &JoinError) -> bool {
        error.is_panic()
    }

    fn thread_rng() -> Dice {
        Dice(current())
    }

    fn new(threads: usize) -> Runtime {
        Runtime(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_stopped_does_nothing_and_finds_its_time_gone_when_it_goes_on() {
    let process = Process::new(1, Clock::right());
    let began = tokio::time::Instant::now();
    let inner = process.spawn(async move {
        Runtime::sleep(Duration::from_secs(1)).await;
        // Begun by a task of the process, so it is one too.
        let nested = async {
            Runtime::sleep(Duration::from_secs(1)).await;
            current().is_some()
        };
        (Runtime::spawn(nested).await.unwrap(), began.elapsed())
    });
    tokio::task::yield_now().await;
    process.stop();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!inner.is_finished());
    process.go_on();
    assert_eq!(inner.await.unwrap(), (true, Duration::from_secs(11)));

    let waiting = process.spawn(std::future::pending::<()>());
    let asked = {
        let process = process.clone();
        tokio::spawn(async move { process.run(std::future::pending::<()>()).await })
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    process.kill();
    assert!(waiting.await.unwrap_err().is_cancelled());
    assert_eq!(asked.await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn clocks_differ_and_dice_fall_again() {
    let elapsed = async |clock: Clock, stop: bool| {
        let process = Process::new(1, clock);
        let measured = process.spawn(async {
            let began = <Instant as openraft::Instant>::now();
            let throw = rand::Rng::next_u64(&mut Runtime::thread_rng());
            Runtime::sleep(Duration::from_secs(10)).await;
            (openraft::Instant::elapsed(&began).as_millis(), throw)
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        if stop {
            process.stop();
            tokio::time::sleep(Duration::from_secs(20)).await;
            process.go_on();
        }
        let began = tokio::time::Instant::now();
        let (measured, throw) = measured.await.unwrap();
        (measured, began.elapsed().as_millis(), throw)
    };
    let right = elapsed(Clock::right(), false).await;
    assert_eq!((right.0, right.1), (10_000, 9_000));
    // A clock that gains a quarter has measured ten seconds after eight.
    let fast = elapsed(Clock::right().gaining(250_000), false).await;
    assert_eq!((fast.0, fast.1), (10_000, 7_000));
    assert_eq!(right.2, fast.2);
    assert_eq!(elapsed(Clock::right(), true).await.0, 21_000);
    assert_eq!(elapsed(Clock::right().stopping(), true).await.0, 1_000);
}
