//! The daemon: binds, opens, supervises, and stops in order.
//!
//! Order of a start: keys, tokens and certificates are read, every listener is bound or taken from the service manager
//! (`activation.rs`), the store is opened, then all is served. So a
//! port in use or a missing key touches no data. Order of a stop: not ready → `shutdown.lb_delay` → no more
//! connections → sessions told and closed (`Hub::drain_to_stop`) → tasks joined → store flushed and closed, all under
//! `shutdown.deadline`. `drain.rs` is what of it a drain does, too.

pub mod activation;
pub mod calls;
mod descriptors;
mod drain;
mod health;
mod manager;
mod memory;
mod origins;
pub mod pulse;
mod reload;
mod tls;
pub mod watchdog;

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

pub use self::reload::{Reloader, Source};
use self::{
    activation::Passed,
    calls::Calls,
    drain::Doors,
    health::Health,
    reload::{Made, Running},
};
use crate::{
    api::{
        Api, Listener, LogControl,
        access::{Access, Tokens},
    },
    auth::Authenticator,
    clock::Clock,
    config::Config,
    grpc, http,
    hub::{Hub, Parts},
    lifecycle::{Lifecycle, Shutdown},
    metrics::Metrics,
    net::{BindError, Bound, door::Origin},
    otlp,
    store::{OpenError, Store, StoreError},
    systemd, ws,
};

/// What a second signal makes the process exit with: killed by SIGINT, as a shell would say.
const EXIT_SECOND_SIGNAL: i32 = 130;

/// Why the daemon does not start. One line each.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A key or a token cannot be used.
    #[error("{0}")]
    Config(String),
    /// An address cannot be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// What the store has of revoked tokens cannot be read.
    #[error("the tokens that were revoked cannot be read from the store: {0}")]
    Revocations(StoreError),
    /// The system refuses something that every daemon needs.
    #[error("cannot start: {0}")]
    System(#[from] std::io::Error),
}

/// How the daemon ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// Told to, in order.
    InOrder,
    /// An essential task was lost, or the store could not be closed.
    Failed(String),
}

/// A daemon with every socket bound and every address readable, that serves nobody yet.
pub struct Server {
    api: Api,
    hub: Hub,
    life: Lifecycle,
    calls: Calls,
    shutdown: Arc<Mutex<Shutdown>>,
    ws: ws::Context,
    bound: Vec<(&'static str, Bound, Origin)>,
    access: Vec<Access>,
    ops_access: Vec<Option<Access>>,
    grpc_limits: watch::Sender<grpc::Bounds>,
    tokens: Arc<Tokens>,
    config: Config,
    listeners: Vec<Listener>,
    tls: tls::Listeners,
    clients: Arc<grpc::Clients>,
    source: Option<Source>,
    /// The signals that have the configuration read again.
    hang_up: Option<Signal>,
    exporting: otlp::Exporting,
    on_ready: Option<OnReady>,
}

type OnReady = Box<dyn FnOnce() + Send>;

impl Server {
    /// Reads keys, binds listeners, opens the store.
    pub async fn bind(config: &Config, clock: Clock) -> Result<Server, StartError> {
        Self::bind_with(config, clock, Calls::apart()?).await
    }

    /// The same, with calls where the caller wants them.
    pub async fn bind_with(config: &Config, clock: Clock, calls: Calls) -> Result<Server, StartError> {
        Self::bind_passed(config, clock, calls, Passed::none()).await
    }

    /// The same, with sockets that the service manager has bound.
    pub async fn bind_passed(
        config: &Config,
        clock: Clock,
        calls: Calls,
        passed: Passed,
    ) -> Result<Server, StartError> {
        let authenticator =
            Authenticator::new(&config.auth, clock.clone()).map_err(|error| StartError::Config(error.to_string()))?;
        let Made { rules, tokens, terms } = Made::of(config)?;
        let authenticator = authenticator.keeping(rules.claims());
        let tokens = Tokens::new(tokens);
        let tls = tls::Listeners::open(config, &clock)?;
        let clients = config.grpc.clients.iter().map(|client| (client.name.as_str(), client.scope_set()));
        let clients = Arc::new(grpc::Clients::new(clients));
        let activation::Open { bound, access, ops_access } = activation::open(config, passed, &calls, &tokens, &tls)?;
        let listener = |(name, bound, _): &(&'static str, Bound, Origin)| {
            let tls = matches!(bound, Bound::Tcp(..)) && tls.of(name).is_some();
            Listener { name, address: bound.to_string(), tls }
        };
        let listeners: Vec<Listener> = bound.iter().map(listener).collect();

        let metrics = Metrics::default();
        let (tracer, exporting) =
            otlp::start(&config.otlp, &clock, &metrics, &calls.handle()).map_err(StartError::Config)?;
        systemd::status("opening the store");
        let store = manager::while_it_starts(open_store(config, clock.clone())).await?;
        let life = Lifecycle::new();
        let hub = Hub::new(Parts {
            store,
            authenticator: Arc::new(authenticator),
            clock,
            metrics,
            tracer,
            life: life.clone(),
            events: config.events.clone(),
            live: reload::live(config, rules),
        });
        // Before anybody is let in.
        hub.load_revocations().await.map_err(StartError::Revocations)?;
        tls.note(hub.metrics());
        let api = Api::new(hub.clone(), life.on(calls.handle()));
        api.set_listeners(listeners.clone());
        let bounds = reload::bounds(config);
        api.set_call_limits(bounds.calls);
        let mut ws = ws::Context::new(hub.clone(), life.clone(), terms);
        ws.tls = tls.http.clone();
        Ok(Self {
            api,
            hub,
            life,
            calls,
            shutdown: Arc::new(Mutex::new(config.shutdown.clone())),
            ws,
            bound,
            access,
            ops_access,
            grpc_limits: watch::Sender::new(bounds),
            tokens,
            config: config.clone(),
            listeners,
            tls,
            clients,
            source: None,
            hang_up: None,
            on_ready: None,
            exporting,
        })
    }

    /// Has the configuration read again from there, by `Reload` and by these signals. Without a source it never is.
    pub fn set_source(&mut self, source: Source) {
        self.source = Some(source);
    }

    /// Where it listens, as bound.
    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// The hub, for tests that look inside.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Serves a page at `/` of the public listener.
    pub fn set_page(&mut self, page: ws::Page) {
        self.ws.page = Some(page);
    }

    /// Lets callers set what the process logs.
    pub fn set_log_control(&mut self, control: LogControl) {
        self.api.set_log_control(control);
    }

    /// Has `then` called once everything is served.
    pub fn when_ready(&mut self, then: impl FnOnce() + Send + 'static) {
        self.on_ready = Some(Box::new(then));
    }

    /// Serves until `stop` resolves or something essential is lost, then stops in order.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Ended {
        let Self { api, hub, life, calls, shutdown, ws, bound, access, ops_access, listeners, .. } = self;
        let Self { grpc_limits, tokens, config, tls, clients, source, hang_up, exporting, on_ready, .. } = self;
        let ws = Arc::new(ws);
        let bounds = grpc_limits.subscribe();
        let reloader = source.map(|source| {
            let (api, hub, tls, clients) = (api.clone(), hub.clone(), tls.clone(), Arc::clone(&clients));
            let (ws, shutdown) = (Arc::clone(&ws), Arc::clone(&shutdown));
            let running = Running { api, hub, ws, tls, tokens, clients, bounds: grpc_limits, shutdown };
            Reloader::new(running, config, source)
        });
        let calls_life = life.on(calls.handle());
        // Before anybody can ask for them.
        for (of, runtime) in [(pulse::Of::Sessions, Handle::current()), (pulse::Of::Calls, calls.handle())] {
            hub.metrics().runtimes.set(of.name(), runtime.metrics());
        }
        let (reporter, health) = Health::new().await;
        let (mut access, mut ops_access) = (access.into_iter(), ops_access.into_iter());
        let mut doors = Doors::default();
        for (name, bound, origin) in bound {
            match (name, bound) {
                ("grpc", bound) => {
                    let Some(access) = access.next() else { continue };
                    let (api, health, tls, clients) = (api.clone(), health.clone(), tls.grpc.clone(), clients.clone());
                    let services = grpc::Services { api, health, tls, clients, limits: bounds.clone() };
                    let serving = grpc::serve(bound, access, services, calls_life.clone());
                    calls_life.spawn_essential("the gRPC listener", serving);
                }
                ("ops", Bound::Tcp(listener, _)) => {
                    let access = ops_access.next().flatten();
                    let services = http::Services { api: api.clone(), access, tls: tls.ops.clone() };
                    let serving = http::serve(listener, services, calls_life.clone());
                    calls_life.spawn_essential("the ops listener", serving);
                }
                (_, Bound::Tcp(listener, address)) => {
                    let door = doors.add(listener, address, origin);
                    life.spawn_essential("the public listener", ws::serve(door, Arc::clone(&ws)));
                }
                // The configuration allows Unix sockets for gRPC only.
                (name, Bound::Unix(..)) => tracing::error!(name, "a Unix socket is not served here"),
            }
        }
        api.set_opener(Box::new(move || doors.open()));
        let watching = tls::watch(tls, hub.metrics().clone(), hub.clock().clone());
        let stop_watching = life.stopping().clone();
        life.spawn_essential("the watch over certificates", async move {
            stop_watching.run_until_cancelled(watching).await.unwrap_or(Ok(()))
        });
        hub.start();
        hub.follow_keys();
        let stopping = life.stopping();
        let pulse = pulse::run(pulse::Of::Sessions, hub.metrics().clone(), stopping.clone());
        life.spawn_essential("the sessions' pulse", pulse);
        let pulse = pulse::run(pulse::Of::Calls, hub.metrics().clone(), stopping.clone());
        calls_life.spawn_essential("the calls' pulse", pulse);
        for listener in &listeners {
            tracing::info!(name = listener.name, address = %listener.address, tls = listener.tls, "listening");
        }
        tracing::info!(version = env!("CARGO_PKG_VERSION"), epoch = %hub.events().epoch(), "ready");
        let (places, stopping) = (manager::places(&listeners), CancellationToken::new());
        systemd::ready(&manager::standing(&hub, &places, false));
        let watchdog = watch(&life, &hub, &calls);
        let report = tokio::spawn(manager::report(hub.clone(), places, stopping.clone()));
        let _report = AbortOnDropHandle::new(report);
        if let Some((reloader, hang_up)) = reloader.zip(hang_up) {
            reloader.follow(hang_up, &life);
        }
        if let Some(then) = on_ready {
            then();
        }

        let failed = async {
            tokio::select! {
                error = hub.store().failed() => life.fail(error.to_string()),
                _ = life.failed() => {}
            }
        };
        let mut log = drain::Log::new(&hub);
        let supervised = async {
            tokio::select! {
                () = stop => tracing::info!("stopping"),
                () = failed => {}
                () = reporter.follow(&hub) => {}
                () = log.follow() => {}
            }
        };
        life.beat("the supervisor").during(supervised).await;

        let started = tokio::time::Instant::now();
        let shutdown = shutdown.lock().clone();
        let deadline = started + shutdown.deadline.0;
        systemd::stopping();
        stopping.cancel();
        reporter.set(false).await;
        let _extended = AbortOnDropHandle::new(tokio::spawn(manager::while_it_stops(deadline)));
        // The sessions' ends are events, too: the streams stay until they are out.
        tokio::select! {
            () = hub.drain_to_stop(shutdown.deadline.0, life.failure().is_none()) => {}
            () = reporter.follow(&hub) => {}
            () = log.follow() => {}
        }
        log.catch_up();
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        let tasks = life.stop(left.mul_f64(0.9)).await;
        if tasks > 0 {
            tracing::warn!(tasks, "some tasks did not end in time");
        }
        // They end with the sessions, and what is exported runs where calls do.
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        exporting.finish(left.mul_f64(0.5)).await;
        drop(calls);
        api.set_reload_control(None);
        let closed = close_store(hub.store().clone(), deadline).await;
        let ended = match (life.failure(), closed) {
            (Some(failure), _) | (None, Err(failure)) => Ended::Failed(failure),
            (None, Ok(())) => Ended::InOrder,
        };
        let took = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        drop(watchdog);
        tracing::info!(took_ms = took, in_order = ended == Ended::InOrder, "stopped");
        ended
    }
}

/// Feeds the service manager's watchdog, where it has one.
fn watch(life: &Lifecycle, hub: &Hub, calls: &Calls) -> Option<watchdog::Watchdog> {
    let interval = systemd::watchdog()?;
    let runtimes = vec![("the sessions' runtime", Handle::current()), ("the calls' runtime", calls.handle())];
    let vitals = watchdog::Vitals { life: life.clone(), store: hub.store().clone(), runtimes };
    let started = watchdog::Watchdog::start(interval, vitals, |said| match said {
        watchdog::Said::Alive => systemd::alive(),
        watchdog::Said::Silent(dead) => tracing::error!(?dead, "no sign of life; the watchdog is not fed"),
    });
    // Without it the daemon would be ended, and started again, over and over: that is what a machine without threads needs.
    started.inspect_err(|error| tracing::error!(%error, "the watchdog cannot be fed")).ok()
}

async fn open_store(config: &Config, clock: Clock) -> Result<Store, StartError> {
    let config = config.store.clone();
    let opened = tokio::task::spawn_blocking(move || Store::open(&config, clock)).await;
    Ok(opened.map_err(std::io::Error::other)??)
}

/// Flushes and joins the writer. What the store has acknowledged is on disk already, so the deadline loses nothing.
async fn close_store(store: Store, deadline: tokio::time::Instant) -> Result<(), String> {
    let closing = tokio::task::spawn_blocking(move || store.close());
    match tokio::time::timeout_at(deadline, closing).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(error))) => Err(format!("the store could not be closed: {error}")),
        Ok(Err(panic)) => Err(format!("the store could not be closed: {panic}")),
        Err(_) => Err("the store could not be closed in time".to_owned()),
    }
}

/// Runs the daemon, with the sockets that were passed to it, until SIGTERM or SIGINT; a second one ends the process at once.
/// SIGHUP has the configuration read again. `prepare` sees it before it serves.
pub async fn run(config: &Config, passed: Passed, prepare: impl FnOnce(&mut Server)) -> Result<Ended, StartError> {
    // From here on the signals are ours, so that none is lost, whatever the daemon is at.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let first = stop.clone();
    tokio::spawn(async move {
        for signals in 0.. {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if signals > 0 {
                tracing::warn!("a second signal: ending at once");
                std::process::exit(EXIT_SECOND_SIGNAL);
            }
            first.cancel();
        }
    });
    let descriptors = descriptors::raise_limit(config);
    origins::warn(config);
    let hang_up = signal(SignalKind::hangup())?;
    let mut server = tokio::select! {
        server = Server::bind_passed(config, Clock::system(), Calls::apart()?, passed) => server?,
        () = stop.cancelled() => {
            tracing::info!("stopped while starting");
            return Ok(Ended::InOrder);
        }
    };
    server.hang_up = Some(hang_up);
    memory::warn(config);
    if let Some(descriptors) = descriptors {
        server.ws.keep_within(descriptors);
    }
    prepare(&mut server);
    Ok(server.run(async move { stop.cancelled().await }).await)
}
