//! Feeds the service manager's watchdog (`WatchdogSec=`, sd_watchdog_enabled(3)) at half its interval, and only while all
//! that the daemon lives by shows signs of life. Else it falls silent, and the service manager starts the daemon anew.
//!
//! | sign | what it takes out |
//! |---|---|
//! | a task on each runtime that only waits and counts | a runtime whose workers all hang |
//! | each worker parks, or has worked since the last look | one worker that hangs in a task |
//! | each accept loop counts while it waits ([`Beat`](crate::lifecycle::Beat)) | a listener that nobody serves |
//! | the store's writer begins a turn every few seconds | a writer that hangs, on the disk or elsewhere |
//!
//! Rule: who looks is a thread of its own, which none of these can hold up. What has ended, as it does in a stop, is no
//! longer asked for; a task that ends when it must not is its [`Lifecycle`]'s affair.

use std::{
    collections::HashMap,
    io,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    lifecycle::{BEAT, Lifecycle},
    limits,
    store::Store,
};

/// How many signs of life may fail to come before a task counts as dead, however short the interval.
const BEATS_MISSED: u32 = 4;
/// How often it is looked at most and at least.
const LOOKS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// The longest that the writer goes without beginning a turn while it lives: its rest, and a commit that is not stuck yet.
const WRITER_QUIET_MAX: Duration = limits::STORE_DISK_REST.saturating_add(limits::STORE_STUCK_AFTER);

/// What the daemon lives by.
pub struct Vitals {
    /// Its tasks.
    pub life: Lifecycle,
    /// The store, whose writer has to write.
    pub store: Store,
    /// Its runtimes, by what people call them.
    pub runtimes: Vec<(&'static str, Handle)>,
}

/// What comes of a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// All is alive, and it was time to say so.
    Alive,
    /// These are not; said once, until it is others.
    Silent(Vec<String>),
}

/// Feeds for as long as it lives.
pub struct Watchdog {
    _stop: mpsc::Sender<()>,
    _turns: Vec<AbortOnDropHandle<()>>,
}

impl Watchdog {
    /// Begins to look, and calls `say` from a thread of its own: [`Said::Alive`] every half `interval`.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(interval: Duration, vitals: Vitals, say: impl FnMut(Said) + Send + 'static) -> io::Result<Self> {
        Self::with(interval, WRITER_QUIET_MAX, vitals, say)
    }

    fn with(
        interval: Duration,
        writer_quiet_max: Duration,
        vitals: Vitals,
        say: impl FnMut(Said) + Send + 'static,
    ) -> io::Result<Self> {
        let turns = vitals.runtimes.iter().map(|(name, runtime)| {
            let beat = vitals.life.beat(name);
            // Not one of the daemon's tracked tasks: it is to be seen until the very end.
            AbortOnDropHandle::new(runtime.spawn(async move { beat.during(std::future::pending()).await }))
        });
        let turns = turns.collect();
        let (stop, stopped) = mpsc::channel();
        let patience = (interval / 2).max(BEAT * BEATS_MISSED);
        let look = Look { vitals, patience, writer_quiet_max, seen: HashMap::new() };
        thread::Builder::new().name("watchdog".into()).spawn(move || feed(interval / 2, look, &stopped, say))?;
        Ok(Self { _stop: stop, _turns: turns })
    }
}

fn feed(period: Duration, mut look: Look, stopped: &mpsc::Receiver<()>, mut say: impl FnMut(Said)) {
    let step = (period / 4).clamp(LOOKS.0, LOOKS.1);
    let (mut due, mut silent) = (Instant::now(), Vec::new());
    loop {
        let now = Instant::now();
        let dead = look.dead(now);
        if dead.is_empty() && now >= due {
            say(Said::Alive);
            due = now + period - step / 2;
        }
        if dead != silent {
            if !dead.is_empty() {
                say(Said::Silent(dead.clone()));
            }
            silent = dead;
        }
        match stopped.recv_timeout(step) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// What gives a sign: a task by its name and its place among those of that name, or a worker of a runtime.
type Source = (&'static str, usize, bool);

struct Look {
    vitals: Vitals,
    patience: Duration,
    writer_quiet_max: Duration,
    /// The last sign of each, and when it was another one before.
    seen: HashMap<Source, ((u64, Duration), Instant)>,
}

impl Look {
    /// What shows no sign of life.
    fn dead(&mut self, now: Instant) -> Vec<String> {
        let mut dead = Vec::new();
        let mut places: HashMap<&'static str, usize> = HashMap::new();
        for (name, count) in self.vitals.life.beats() {
            let place = places.entry(name).or_default();
            if self.is_still((name, *place, false), (count, Duration::ZERO), now) {
                dead.push(name.to_owned());
            }
            *place += 1;
        }
        for (name, runtime) in self.vitals.runtimes.clone() {
            let metrics = runtime.metrics();
            for worker in 0..metrics.num_workers() {
                let (parks, busy) =
                    (metrics.worker_park_unpark_count(worker), metrics.worker_total_busy_duration(worker));
                let still = self.is_still((name, worker, true), (parks, busy), now);
                // It counts both when it goes to sleep and when it wakes up: odd, it sleeps.
                if still && parks.is_multiple_of(2) {
                    dead.push(format!("a worker of {name}"));
                }
            }
        }
        if self.vitals.store.writer_quiet_for().is_some_and(|quiet| quiet > self.writer_quiet_max) {
            dead.push("the store's writer".to_owned());
        }
        dead
    }

    /// Whether this sign is the same as it was all the time that one waits for another.
    fn is_still(&mut self, source: Source, sign: (u64, Duration), now: Instant) -> bool {
        let (last, since) = self.seen.entry(source).or_insert((sign, now));
        if *last != sign {
            (*last, *since) = (sign, now);
        }
        now.duration_since(*since) > self.patience
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::runtime::{Builder, Runtime};

    use super::{
        super::{Calls, Server},
        *,
    };
    use crate::{
        clock::Clock,
        store::{Counters, DeviceRow, Hold, Op, double::Double},
        types::{Device, UserId},
    };

    const INTERVAL: Duration = Duration::from_millis(400);
    const PATIENCE: Duration = Duration::from_secs(30);

    struct Fed {
        said: mpsc::Receiver<Said>,
        _watchdog: Watchdog,
    }

    impl Fed {
        fn with(writer_quiet_max: Duration, vitals: Vitals) -> Self {
            let (say, said) = mpsc::channel();
            let tell = move |what| {
                // The test may be over.
                let _ = say.send(what);
            };
            let _watchdog = Watchdog::with(INTERVAL, writer_quiet_max, vitals, tell).unwrap();
            Self { said, _watchdog }
        }

        fn next(&self) -> Said {
            self.said.recv_timeout(PATIENCE).expect("it says something")
        }

        /// It is fed, until something falls silent: what.
        fn falls_silent(&self) -> Vec<String> {
            loop {
                if let Said::Silent(dead) = self.next() {
                    return dead;
                }
            }
        }

        /// Nothing more comes for a while in which it would be fed several times.
        fn stays_silent(&self) {
            let more = self.said.recv_timeout(INTERVAL * 3);
            assert!(!matches!(more, Ok(Said::Alive)), "fed although something is dead");
        }

        fn is_fed(&self) {
            while self.next() != Said::Alive {}
        }
    }

    fn runtime(workers: usize) -> Runtime {
        Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap()
    }

    fn vitals(runtime: &Runtime) -> Vitals {
        let store = Store::open_memory(&crate::store::Config::default(), Clock::system());
        Vitals { life: Lifecycle::new(), store, runtimes: vec![("the runtime", runtime.handle().clone())] }
    }

    /// Holds up workers until it is dropped.
    fn hang(runtime: &Runtime, workers: usize) -> mpsc::Sender<()> {
        let (hold, held) = mpsc::channel::<()>();
        let held = Arc::new(parking_lot::Mutex::new(held));
        let (hanging, hangs) = mpsc::channel();
        for _ in 0..workers {
            let (held, hanging) = (Arc::clone(&held), hanging.clone());
            runtime.spawn(async move {
                hanging.send(()).unwrap();
                // What no task may do: it ends when the other side is gone.
                while held.lock().recv_timeout(Duration::from_millis(5)) == Err(RecvTimeoutError::Timeout) {}
            });
        }
        for _ in 0..workers {
            hangs.recv_timeout(PATIENCE).unwrap();
        }
        hold
    }

    #[test]
    fn it_is_not_fed_while_all_workers_hang_and_is_again_when_they_go_on() {
        let runtime = runtime(2);
        let fed = Fed::with(PATIENCE, vitals(&runtime));
        assert_eq!(fed.next(), Said::Alive);
        let held = hang(&runtime, 2);
        let dead = fed.falls_silent();
        assert!(dead.contains(&"the runtime".to_owned()), "{dead:?}");
        fed.stays_silent();
        drop(held);
        fed.is_fed();
    }

    #[test]
    fn it_is_not_fed_while_one_worker_of_several_hangs() {
        let runtime = runtime(3);
        let fed = Fed::with(PATIENCE, vitals(&runtime));
        let held = hang(&runtime, 1);
        let dead = fed.falls_silent();
        assert!(dead.contains(&"a worker of the runtime".to_owned()), "{dead:?}");
        fed.stays_silent();
        drop(held);
        fed.is_fed();
    }

    #[test]
    fn it_is_not_fed_while_the_writer_hangs_in_a_commit() {
        let (runtime, double) = (runtime(1), Arc::new(Double::default()));
        let store = Store::open_double(&double, Clock::system());
        let fed = Fed::with(limits::STORE_DISK_REST + BEAT, Vitals { store: store.clone(), ..vitals(&runtime) });
        let held = double.hold();
        let (done, _answer) = tokio::sync::oneshot::channel();
        store.stage(Op::PutDevice {
            user: UserId::parse("ann").unwrap(),
            device: Device::UNNAMED,
            row: DeviceRow::default(),
            counters: Counters::default(),
            hold: Hold::default(),
            done,
        });
        assert_eq!(fed.falls_silent(), ["the store's writer"]);
        fed.stays_silent();
        drop(held);
        fed.is_fed();
    }

    #[test]
    fn it_is_not_fed_while_the_accept_loops_get_no_turns() {
        let (runtime, folder) = (runtime(1), tempfile::tempdir().unwrap());
        let own = Builder::new_current_thread().enable_all().build().unwrap();
        let mut config = crate::config::Config::default();
        let key = crate::auth::KeyConfig {
            secret: "a secret that only this test knows".to_owned().into(),
            ..crate::auth::KeyConfig::new(crate::auth::Algorithm::HS256)
        };
        config.auth.keys = vec![key];
        config.store.path = folder.path().join("data");
        config.grpc.listen = vec![format!("unix:{}/admin.sock", folder.path().display())];
        (config.http.listen, config.ops.listen) = (vec!["127.0.0.1:0".to_owned()], vec!["127.0.0.1:0".to_owned()]);
        let (ready, served) = tokio::sync::oneshot::channel();
        let (vitals, server) = own.block_on(async {
            let mut server = Server::bind_with(&config, Clock::system(), Calls::beside()).await.unwrap();
            server.when_ready(move || ready.send(()).unwrap());
            let vitals = Vitals { life: server.life.clone(), ..vitals(&runtime) };
            let server = tokio::spawn(server.run(std::future::pending()));
            served.await.unwrap();
            // Until all of them wait for somebody.
            tokio::time::timeout(PATIENCE, async {
                while vitals.life.beats().len() < 4 {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .unwrap();
            (vitals, server)
        });
        // From here on nobody drives that runtime: the loops are there, and get no turns.
        let fed = Fed::with(PATIENCE, vitals);
        let mut dead = fed.falls_silent();
        dead.sort();
        assert_eq!(dead, ["the gRPC listener", "the ops listener", "the public listener", "the supervisor"]);
        fed.stays_silent();
        // What has ended is not asked for any more.
        server.abort();
        own.block_on(server).unwrap_err();
        drop(own);
        fed.is_fed();
    }
}
