//! The loop of a shim: waits for sockets, pipes, children and deadlines, tells the machine, and does what it says.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{Read, Write},
    os::{
        fd::OwnedFd,
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{WaitOptions, wait},
};

use super::{
    SIDECAR_GROUP, Settings,
    machine::{Action, Ended, Input, Machine, Refusal},
    protocol::{
        Body, Decoder, Event, EventKind, FromShim, Reply, Request, StartSidecar, StartTask, State,
        ToShim, VERSION, encode,
    },
    sidecar,
    task::{self, Process},
};
use crate::{
    container::{
        self, Progress,
        cgroup::{Group, Hierarchy},
    },
    sys,
};

/// Events that are remembered for a client which comes back.
const EVENTS: usize = 512;

/// Connections at once: the agent's, and one of a person who looks.
const CLIENTS: usize = 8;

/// What may wait for a client that does not read.
const BACKLOG: usize = 4 << 20;

/// Exits of unknown children that are remembered while a launch is going on.
const STRAYS: usize = 64;

/// Size of one read.
const SCRATCH: usize = 16 << 10;

/// Tasks of one allocation.
const TASKS: usize = 64;

/// Serves until the machine says that nothing is left.
pub(super) fn serve(
    settings: Settings,
    hierarchy: Hierarchy,
    listener: UnixListener,
    notify: UnixDatagram,
) {
    let Ok(signals) =
        sys::signal_descriptor(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP])
    else {
        return;
    };
    let sidecar_group = hierarchy.group(&settings.group.join(SIDECAR_GROUP));
    let mut shim = Shim {
        settings,
        hierarchy,
        sidecar_group,
        signals,
        listener,
        notify,
        machine: Machine::default(),
        began: Instant::now(),
        clients: Vec::new(),
        starts: BTreeMap::new(),
        processes: BTreeMap::new(),
        sidecar_start: None,
        sidecar: None,
        strays: VecDeque::new(),
        events: VecDeque::new(),
        last_event: 0,
        scratch: vec![0; SCRATCH],
        ended: false,
    };
    while !shim.ended {
        shim.turn();
    }
    shim.flush();
    let _ = std::fs::remove_file(&shim.settings.socket);
    let _ = std::fs::remove_file(&shim.settings.notify);
    let _ = shim.sidecar_group.remove();
}

struct Shim {
    settings: Settings,
    hierarchy: Hierarchy,
    sidecar_group: Group,
    signals: OwnedFd,
    listener: UnixListener,
    notify: UnixDatagram,
    machine: Machine,
    began: Instant,
    clients: Vec<Client>,
    /// What was asked for and is not launched yet.
    starts: BTreeMap<String, StartTask>,
    processes: BTreeMap<String, Process>,
    sidecar_start: Option<StartSidecar>,
    sidecar: Option<sidecar::Running>,
    strays: VecDeque<(u32, Ended)>,
    events: VecDeque<Event>,
    last_event: u64,
    scratch: Vec<u8>,
    ended: bool,
}

/// A connection.
struct Client {
    stream: UnixStream,
    decoder: Decoder,
    backlog: Vec<u8>,
    /// The last event that was sent, once it wants them.
    subscribed: Option<u64>,
    gone: bool,
}

/// What a descriptor that became ready belongs to.
#[derive(Clone, Copy)]
enum Source {
    Signals,
    Listener,
    Notify,
    Client(usize),
    Progress(usize),
    Stream(usize, usize),
    Oom(usize),
    SidecarStream,
}

impl Shim {
    /// Waits for something, and deals with all that happened.
    fn turn(&mut self) {
        let ready = self.wait();
        let names: Vec<String> = self.processes.keys().cloned().collect();
        let mut reap = false;
        for source in ready {
            match source {
                Source::Signals => reap = true,
                Source::Listener => self.accept(),
                Source::Notify => {
                    if sidecar::ready(&self.notify) {
                        self.feed(Input::SidecarReady);
                    }
                }
                Source::Client(index) => self.serve_client(index),
                Source::Progress(index) => self.progress(&names[index]),
                Source::Stream(index, stream) => {
                    let name = &names[index];
                    if let Some(process) = self.processes.get_mut(name) {
                        process.streams[stream].drain(&mut self.scratch);
                    }
                    self.report_lost(name);
                }
                Source::Oom(index) => {
                    let name = &names[index];
                    if self
                        .processes
                        .get_mut(name)
                        .is_some_and(Process::oom_happened)
                    {
                        self.feed(Input::OutOfMemory { task: name.clone() });
                    }
                }
                Source::SidecarStream => {
                    if let Some(sidecar) = &mut self.sidecar {
                        sidecar.stream.drain(&mut self.scratch);
                    }
                }
            }
        }
        // Children come last: what they told before they ended has been read, except what came in between.
        if reap {
            self.read_signals();
            self.reap();
        }
        let now = self.began.elapsed();
        if self.machine.deadline().is_some_and(|due| due <= now) {
            self.feed(Input::Tick);
        }
        self.send_events();
        self.clients.retain(|client| !client.gone);
    }

    fn wait(&self) -> Vec<Source> {
        let mut sources = vec![Source::Signals, Source::Listener, Source::Notify];
        let mut polls = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
            PollFd::new(&self.notify, PollFlags::IN),
        ];
        for (index, client) in self.clients.iter().enumerate() {
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, !client.backlog.is_empty());
            polls.push(PollFd::new(&client.stream, flags));
            sources.push(Source::Client(index));
        }
        for (index, process) in self.processes.values().enumerate() {
            let of_process = [
                (process.progress(), Source::Progress(index)),
                (process.oom(), Source::Oom(index)),
                (process.streams[0].poll(), Source::Stream(index, 0)),
                (process.streams[1].poll(), Source::Stream(index, 1)),
            ];
            for (poll, source) in of_process {
                if let Some(poll) = poll {
                    polls.push(poll);
                    sources.push(source);
                }
            }
        }
        if let Some(poll) = self
            .sidecar
            .as_ref()
            .and_then(|sidecar| sidecar.stream.poll())
        {
            polls.push(poll);
            sources.push(Source::SidecarStream);
        }
        let timeout = self.machine.deadline().map(|due| {
            let left = due.saturating_sub(self.began.elapsed()) + Duration::from_millis(1);
            Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        // An interrupted wait is a turn in which nothing happened.
        let _ = poll(&mut polls, timeout.as_ref());
        polls
            .iter()
            .zip(sources)
            .filter(|(poll, _)| !poll.revents().is_empty())
            .map(|(_, source)| source)
            .collect()
    }

    fn feed(&mut self, input: Input) {
        // What nobody asked for cannot be refused to anybody.
        let _ = self.ask(input);
    }

    fn ask(&mut self, input: Input) -> Result<(), Refusal> {
        let actions = self.machine.handle(self.began.elapsed(), wall(), input)?;
        for action in actions {
            self.act(action);
        }
        Ok(())
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Launch { task } => self.launch(task),
            Action::Abort { task } => {
                if let Some(process) = self.processes.get(&task) {
                    process.abort();
                }
            }
            Action::Begin { task } => {
                if let Some(process) = self.processes.get(&task) {
                    // If its first process is gone, its exit is on its way.
                    let _ = container::begin(&process.start.spec);
                }
            }
            Action::Signal { task, signal } => {
                if let Some(process) = self.processes.get(&task) {
                    process.signal(signal);
                }
            }
            Action::Sweep { task } => {
                let Some(process) = self.processes.get(&task) else {
                    self.feed(Input::Swept { task, left: 0 });
                    return;
                };
                process.signal(libc::SIGKILL);
                let left = process.group.kill();
                if left == 0 && process.group.oom_kills() > 0 {
                    self.feed(Input::OutOfMemory { task: task.clone() });
                }
                self.feed(Input::Swept { task, left });
            }
            Action::Clean { task } => {
                if let Some(process) = self.processes.get_mut(&task) {
                    for stream in &mut process.streams {
                        stream.drain(&mut self.scratch);
                    }
                }
                self.report_lost(&task);
                if let Some(process) = self.processes.get(&task) {
                    let _ = process.group.remove();
                    container::clean(&process.start.spec);
                }
            }
            Action::Record { task, exit } => {
                if let Some(process) = self.processes.remove(&task) {
                    // On a full disk the event still carries it.
                    let _ = task::record(&process.start.exit_file, &exit);
                }
            }
            Action::Announce(kind) => self.announce(kind),
            Action::SpawnSidecar => self.spawn_sidecar(),
            Action::SignalSidecar { signal } => {
                if let Some(sidecar) = &self.sidecar {
                    sys::kill(sidecar.pid.cast_signed(), signal);
                }
            }
            Action::SweepSidecar => {
                self.sidecar_group.kill();
            }
            Action::Exit => self.ended = true,
        }
    }

    fn launch(&mut self, task: String) {
        let Some(start) = self.starts.remove(&task) else {
            return;
        };
        match Process::launch(start, &self.hierarchy) {
            Ok(process) => {
                self.processes.insert(task, process);
            }
            Err(error) => self.feed(Input::LaunchFailed {
                task,
                message: error.to_string(),
            }),
        }
    }

    fn spawn_sidecar(&mut self) {
        let Some(start) = &self.sidecar_start else {
            return;
        };
        match sidecar::spawn(start, &self.sidecar_group, &self.settings.notify) {
            Ok(running) => {
                let pid = running.pid;
                self.sidecar = Some(running);
                self.feed(Input::SidecarSpawned { pid });
            }
            Err(why) => self.feed(Input::SidecarFailed { why }),
        }
    }

    fn progress(&mut self, task: &str) {
        let Some(process) = self.processes.get_mut(task) else {
            return;
        };
        let (messages, over) = process.told(&mut self.scratch);
        for message in messages {
            let task = task.to_owned();
            let input = match message {
                Progress::Created { pid } => {
                    if let Some(process) = self.processes.get_mut(&task) {
                        process.attach(pid);
                    }
                    self.feed(Input::Created { task, pid });
                    // It may have ended, and been collected, before it was known.
                    if let Some(at) = self.strays.iter().position(|(stray, _)| *stray == pid)
                        && let Some((pid, ended)) = self.strays.remove(at)
                    {
                        self.feed(Input::Reaped { pid, ended });
                    }
                    continue;
                }
                Progress::Failed { message } => Input::LaunchFailed { task, message },
                Progress::Command { message } => Input::CommandFailed { task, message },
                Progress::Running => Input::Running { task },
                Progress::Ended { code, signal } => {
                    let ended = match (code, signal) {
                        (Some(code), _) => Ended::Code(code),
                        (None, Some(signal)) => Ended::Signal(signal),
                        (None, None) => continue,
                    };
                    Input::CommandEnded { task, ended }
                }
            };
            self.feed(input);
        }
        if over {
            self.feed(Input::LauncherGone {
                task: task.to_owned(),
            });
        }
    }

    fn read_signals(&mut self) {
        let mut record = [0; sys::SIGNAL_RECORD];
        while rustix::io::read(&self.signals, &mut record).is_ok_and(|count| count == record.len())
        {
            // Whoever asks the shim itself to go means its tasks: SIGHUP, which a closing terminal sends, is nobody.
            let signal = i32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
            if signal == libc::SIGTERM || signal == libc::SIGINT {
                self.feed(Input::Shutdown);
            }
        }
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get().cast_unsigned();
            let ended = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Ended::Code(code),
                (None, Some(signal)) => Ended::Signal(signal),
                (None, None) => continue,
            };
            // What it said last may have come after this turn's reading.
            let names: Vec<String> = self.processes.keys().cloned().collect();
            for name in names {
                self.progress(&name);
            }
            if self.machine.launching() {
                self.strays.push_back((pid, ended));
                if self.strays.len() > STRAYS {
                    self.strays.pop_front();
                }
            } else {
                self.strays.clear();
            }
            if self
                .sidecar
                .as_ref()
                .is_some_and(|sidecar| sidecar.pid == pid)
                && let Some(mut sidecar) = self.sidecar.take()
            {
                sidecar.stream.drain(&mut self.scratch);
            }
            self.feed(Input::Reaped { pid, ended });
        }
    }

    fn report_lost(&mut self, task: &str) {
        let Some(process) = self.processes.get_mut(task) else {
            return;
        };
        let lost: Vec<EventKind> = process
            .streams
            .iter_mut()
            .filter_map(|stream| {
                let (bytes, why) = stream.take_lost()?;
                let stream = format!("{task}/{}", stream.name);
                Some(EventKind::LogLost { stream, bytes, why })
            })
            .collect();
        lost.into_iter().for_each(|kind| self.announce(kind));
    }

    fn announce(&mut self, kind: EventKind) {
        self.last_event += 1;
        self.events.push_back(Event {
            seq: self.last_event,
            at: wall(),
            kind,
        });
        if self.events.len() > EVENTS {
            self.events.pop_front();
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            // The socket's mode keeps others out; a peer that is neither root nor this user is refused all the same.
            let ours = rustix::net::sockopt::socket_peercred(&stream)
                .is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid());
            if ours && self.clients.len() < CLIENTS && stream.set_nonblocking(true).is_ok() {
                self.clients.push(Client {
                    stream,
                    decoder: Decoder::default(),
                    backlog: Vec::new(),
                    subscribed: None,
                    gone: false,
                });
            }
        }
    }

    fn serve_client(&mut self, index: usize) {
        let requests = self.clients[index].read(&mut self.scratch);
        for ToShim { v, id, request } in requests {
            let reply = if v == VERSION {
                self.answer(index, request)
            } else {
                Reply::Refused(format!(
                    "this shim speaks version {VERSION} of the protocol, not {v}"
                ))
            };
            self.clients[index].send(Body::Reply { id, reply });
        }
        self.clients[index].flush();
    }

    fn answer(&mut self, client: usize, request: Request) -> Reply {
        let input = match request {
            Request::State => {
                return Reply::State(State {
                    pid: std::process::id(),
                    tasks: self.machine.tasks(),
                    sidecar: self.machine.sidecar(),
                    last_event: self.last_event,
                });
            }
            Request::Subscribe { after } => {
                self.clients[client].subscribed = Some(after);
                return Reply::Done;
            }
            Request::StartTask(start) => {
                if let Err(error) = start.spec.validate() {
                    return Reply::Refused(error.to_string());
                }
                if !self.machine.tasks().contains_key(&start.task)
                    && self.machine.tasks().len() >= TASKS
                {
                    return Reply::Refused(format!("an allocation has at most {TASKS} tasks"));
                }
                let task = start.task.clone();
                self.starts.insert(task.clone(), *start);
                let answer = self.ask(Input::StartTask { task: task.clone() });
                self.starts.remove(&task);
                return reply(answer);
            }
            Request::StartSidecar(start) => {
                if self.machine.sidecar().is_none() {
                    self.sidecar_start = Some(*start);
                }
                Input::StartSidecar
            }
            Request::StopSidecar { timeout_ms } => Input::StopSidecar {
                timeout: Duration::from_millis(timeout_ms),
            },
            Request::Signal { task, signal } => Input::SignalTask { task, signal },
            Request::Stop {
                task,
                signal,
                timeout_ms,
            } => Input::StopTask {
                task,
                signal,
                timeout: Duration::from_millis(timeout_ms),
            },
            Request::Shutdown => Input::Shutdown,
        };
        reply(self.ask(input))
    }

    fn send_events(&mut self) {
        for client in &mut self.clients {
            let Some(after) = client.subscribed else {
                continue;
            };
            for event in self.events.iter().filter(|event| event.seq > after) {
                client.send(Body::Event(event.clone()));
            }
            client.subscribed = Some(after.max(self.last_event));
            client.flush();
        }
    }

    /// Gives the last answers a moment to leave.
    fn flush(&mut self) {
        self.send_events();
        for client in &mut self.clients {
            let _ = client.stream.set_nonblocking(false);
            let _ = client
                .stream
                .set_write_timeout(Some(Duration::from_millis(200)));
            let _ = client.stream.write_all(&client.backlog);
        }
    }
}

fn reply(answer: Result<(), Refusal>) -> Reply {
    match answer {
        Ok(()) => Reply::Done,
        Err(refusal) => Reply::Refused(refusal.to_string()),
    }
}

impl Client {
    fn read(&mut self, scratch: &mut [u8]) -> Vec<ToShim> {
        let mut requests = Vec::new();
        loop {
            match self.stream.read(scratch) {
                Ok(0) => {
                    self.gone = true;
                    break;
                }
                Ok(count) => self.decoder.feed(&scratch[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.gone |= error.kind() != std::io::ErrorKind::WouldBlock;
                    break;
                }
            }
            loop {
                match self.decoder.message() {
                    Ok(Some(request)) => requests.push(request),
                    Ok(None) => break,
                    Err(_) => {
                        self.gone = true;
                        return requests;
                    }
                }
            }
        }
        requests
    }

    fn send(&mut self, body: Body) {
        if let Ok(frame) = encode(&FromShim { v: VERSION, body }) {
            self.backlog.extend(frame);
        }
        // It reads nothing: it can come back and ask from where it was.
        self.gone |= self.backlog.len() > BACKLOG;
    }

    fn flush(&mut self) {
        while !self.backlog.is_empty() {
            match self.stream.write(&self.backlog) {
                Ok(count) => {
                    self.backlog.drain(..count);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.gone |= error.kind() != std::io::ErrorKind::WouldBlock;
                    return;
                }
            }
        }
        self.backlog = Vec::new();
    }
}

fn wall() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
