//! The daemon: binds, opens, supervises, and stops in order.
//!
//! Order of a start: keys, tokens and certificates are read, every listener is bound or taken from the service manager
//! (`activation.rs`), the store is opened, then all is served. So a
//! port in use or a missing key touches no data. Order of a stop: not ready → `shutdown.lb_delay` → no more
//! connections → sessions told and closed → tasks joined → store flushed and closed, all under `shutdown.deadline`.

pub mod activation;
pub mod calls;
mod descriptors;
mod health;
mod manager;
mod memory;
mod origins;
pub mod pulse;
mod tls;
pub mod watchdog;

use std::{sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
    sync::Notify,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use self::{activation::Passed, calls::Calls, health::Health};
use crate::{
    api::{
        Api, Listener, LogControl,
        access::{Access, Token},
    },
    auth::Authenticator,
    clock::Clock,
    config::Config,
    grpc, http,
    hub::{BadRule, Hub, Parts, Quotas, Rules},
    lifecycle::{Lifecycle, Shutdown},
    metrics::Metrics,
    net::{BindError, Bound},
    otlp,
    session::Settings,
    store::{OpenError, Store, StoreError},
    systemd,
    types::Span,
    ws,
};

/// Sessions that a drain closes in a second, where the deadline leaves it the choice.
const DRAIN_SESSIONS_PER_SECOND: f64 = 1000.0;
/// The part of the time left that a drain may take; the rest is for the connections' ends and the store.
const DRAIN_SHARE: f64 = 0.6;
/// How long the ends of closed sessions are waited for before event streams end.
const SESSION_ENDS_MAX: Duration = Duration::from_secs(3);
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
    shutdown: Shutdown,
    ws: ws::Context,
    accepting: CancellationToken,
    bound: Vec<(&'static str, Bound)>,
    access: Vec<Access>,
    ops_access: Vec<Option<Access>>,
    grpc_limits: grpc::Bounds,
    listeners: Vec<Listener>,
    tls: tls::Listeners,
    clients: Arc<grpc::Clients>,
    /// Certificates are to be read again.
    reload: Arc<Notify>,
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
        let rules = Rules::new(&config.topics, &config.clients.message)
            .map_err(|bad| StartError::Config(bad.iter().map(BadRule::to_string).collect::<Vec<_>>().join("\n")))?;
        let authenticator = authenticator.keeping(rules.claims());
        let tokens = tokens(&config.grpc)?;
        let tls = tls::Listeners::open(config, &clock)?;
        let addresses = ws::Addresses::new(&config.http).map_err(|bad| StartError::Config(bad.to_string()))?;
        let clients = config.grpc.clients.iter().map(|client| (client.name.as_str(), client.scope_set()));
        let clients = Arc::new(grpc::Clients::new(clients));
        let activation::Open { bound, access, ops_access } = activation::open(config, passed, &calls, &tokens, &tls)?;
        let listener = |(name, bound): &(&'static str, Bound)| {
            let tls = matches!(bound, Bound::Tcp(..)) && tls.of(name).is_some();
            Listener { name, address: bound.to_string(), tls }
        };
        let listeners: Vec<Listener> = bound.iter().map(listener).collect();

        let metrics = Metrics::default();
        let (tracer, exporting) =
            otlp::start(&config.otlp, &clock, &metrics, &calls.handle()).map_err(StartError::Config)?;
        let store = manager::while_it_starts(open_store(config, clock.clone())).await?;
        let life = Lifecycle::new();
        let hub = Hub::new(Parts {
            store,
            authenticator: Arc::new(authenticator),
            clock,
            metrics,
            tracer,
            life: life.clone(),
            limits: config.limits.clone(),
            settings: Settings::of(&config.delivery, &config.heartbeat, &config.limits),
            presence: config.presence.clone(),
            events: config.events.clone(),
            alerts: config.alerts.clone(),
            clients: config.clients.clone(),
            rules,
            public_claims: config.auth.public_claims.clone(),
            guests_max: config.auth.anonymous_connections,
            quotas: Quotas {
                ttl: config.store.ttl.0,
                max_ttl: config.store.max_ttl.0,
                max_bytes: config.store.max_bytes.0,
                pending_per_user: config.store.max_pending_per_user.limit(),
                devices_per_user: config.store.max_devices_per_user.limit(),
                device_ttl: config.store.device_ttl.0,
                overflow: config.store.overflow,
                idempotency_window: config.store.idempotency_window.0,
            },
        });
        // Before anybody is let in.
        hub.load_revocations().await.map_err(StartError::Revocations)?;
        tls.note(hub.metrics());
        let api = Api::new(hub.clone(), life.on(calls.handle()));
        api.set_listeners(listeners.clone());
        let grpc_limits = grpc::Bounds::of(&config.grpc, config.limits.notification_bytes);
        api.set_call_limits(grpc_limits.calls);
        let accepting = CancellationToken::new();
        let Span(auth_timeout) = config.auth.timeout;
        let path = config.http.path.clone();
        let mut ws = ws::Context::new(hub.clone(), life.clone(), path, auth_timeout, accepting.clone());
        ws.compression = config.ws.compression;
        (ws.tls, ws.addresses) = (tls.http.clone(), addresses);
        let shutdown = config.shutdown.clone();
        let (reload, on_ready) = (Arc::default(), None);
        Ok(Self {
            api,
            hub,
            life,
            calls,
            shutdown,
            ws,
            accepting,
            bound,
            access,
            ops_access,
            grpc_limits,
            listeners,
            tls,
            clients,
            reload,
            exporting,
            on_ready,
        })
    }

    /// Has certificates read again each time it is notified.
    pub fn reload(&self) -> Arc<Notify> {
        Arc::clone(&self.reload)
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
        let Self { api, hub, life, calls, shutdown, ws, accepting, bound, access, ops_access, listeners, .. } = self;
        let Self { grpc_limits, tls, clients, reload, exporting, on_ready, .. } = self;
        let ws = Arc::new(ws);
        let calls_life = life.on(calls.handle());
        // Before anybody can ask for them.
        for (of, runtime) in [(pulse::Of::Sessions, Handle::current()), (pulse::Of::Calls, calls.handle())] {
            hub.metrics().runtimes.set(of.name(), runtime.metrics());
        }
        let (reporter, health) = Health::new().await;
        let notification_bytes = hub.limits().notification_bytes.as_usize();
        let (mut access, mut ops_access) = (access.into_iter(), ops_access.into_iter());
        for (name, bound) in bound {
            match (name, bound) {
                ("grpc", bound) => {
                    let Some(access) = access.next() else { continue };
                    let (api, health, tls, clients) = (api.clone(), health.clone(), tls.grpc.clone(), clients.clone());
                    let services = grpc::Services { api, health, tls, clients, limits: grpc_limits };
                    let serving = grpc::serve(bound, access, services, calls_life.clone());
                    calls_life.spawn_essential("the gRPC listener", serving);
                }
                ("ops", Bound::Tcp(listener, _)) => {
                    let access = ops_access.next().flatten();
                    let services =
                        http::Services { api: api.clone(), access, tls: tls.ops.clone(), notification_bytes };
                    let serving = http::serve(listener, services, calls_life.clone());
                    calls_life.spawn_essential("the ops listener", serving);
                }
                (_, Bound::Tcp(listener, _)) => {
                    life.spawn_essential("the public listener", ws::serve(listener, Arc::clone(&ws)));
                }
                // The configuration allows Unix sockets for gRPC only.
                (name, Bound::Unix(..)) => tracing::error!(name, "a Unix socket is not served here"),
            }
        }
        let watching = tls::watch(tls, reload, hub.metrics().clone(), hub.clock().clone());
        let stop_watching = life.stopping().clone();
        life.spawn_essential("the watch over certificates", async move {
            stop_watching.run_until_cancelled(watching).await.unwrap_or(Ok(()))
        });
        hub.start();
        hub.authenticator().follow_keys(&life, hub.metrics());
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
        if let Some(then) = on_ready {
            then();
        }

        let failed = async {
            tokio::select! {
                error = hub.store().failed() => life.fail(error.to_string()),
                _ = life.failed() => {}
            }
        };
        let supervised = async {
            tokio::select! {
                () = stop => tracing::info!("stopping"),
                () = failed => {}
                () = reporter.follow(&hub) => {}
            }
        };
        life.beat("the supervisor").during(supervised).await;

        let started = tokio::time::Instant::now();
        let deadline = started + shutdown.deadline.0;
        api.set_stopping(shutdown.deadline.0);
        systemd::stopping();
        stopping.cancel();
        let _extended = AbortOnDropHandle::new(tokio::spawn(manager::while_it_stops(deadline)));
        reporter.set(false).await;
        if life.failure().is_none() {
            tokio::time::sleep(shutdown.lb_delay.0.min(shutdown.deadline.0 / 2)).await;
        }
        hub.begin_drain();
        accepting.cancel();
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        let wanted = Duration::from_secs_f64(hub.session_count() as f64 / DRAIN_SESSIONS_PER_SECOND);
        let _ = tokio::time::timeout_at(deadline, hub.drain(wanted.min(left.mul_f64(DRAIN_SHARE)))).await;
        // The sessions' ends are events, too: the streams stay until they are out.
        let ends = deadline.saturating_duration_since(tokio::time::Instant::now()).mul_f64(DRAIN_SHARE);
        let _ = tokio::time::timeout(ends.min(SESSION_ENDS_MAX), hub.emptied()).await;
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        let tasks = life.stop(left.mul_f64(0.9)).await;
        if tasks > 0 {
            tracing::warn!(tasks, "some tasks did not end in time");
        }
        // They end with the sessions, and what is exported runs where calls do.
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        exporting.finish(left.mul_f64(0.5)).await;
        drop(calls);
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

fn tokens(config: &grpc::Config) -> Result<Vec<Token>, StartError> {
    let token = |token: &grpc::config::TokenConfig| {
        let sha256 =
            token.sha256().map_err(|error| StartError::Config(format!("grpc.tokens, `{}`: {error}", token.name)))?;
        Ok(Token::new(sha256, &token.name, token.scope_set()))
    };
    config.tokens.iter().map(token).collect()
}

/// Runs the daemon, with the sockets that were passed to it, until SIGTERM or SIGINT; a second one ends the process at once.
/// SIGHUP has keys and certificates read again. `prepare` sees it before it serves.
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
    tls::reload_on(hang_up, &server);
    memory::warn(config);
    if let Some(descriptors) = descriptors {
        server.ws.keep_within(descriptors);
    }
    prepare(&mut server);
    Ok(server.run(async move { stop.cancelled().await }).await)
}
