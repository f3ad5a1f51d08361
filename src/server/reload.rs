//! The configuration read again while the daemon runs: by `Reload`, and by SIGHUP.
//!
//! All or nothing. First everything is read and made that can fail: the configuration and what `config check` looks at, the
//! keys, the tokens, the certificates, a set of keys from a place that is new. Then all of it takes the place of what there
//! was, and nothing of that can fail. What needs a restart stays as it is and is named (`config/live.rs`).

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::{signal::unix::Signal, sync::watch};

use super::{StartError, tls};
use crate::{
    api::{
        Api, Change, ReloadRefused, Reloaded,
        access::{Token, Tokens},
    },
    auth::Authenticator,
    config::{Config, ConfigError, Difference, Loaded, log_filter_override, place_of},
    grpc,
    hub::{BadRule, Hub, Live, Quotas, Rules},
    lifecycle::{Lifecycle, Shutdown},
    metrics::Failure,
    net::tls::Reloaded as Certificate,
    session::Settings,
    systemd,
    types::Span,
    ws,
};

/// Reads the configuration as it was read at the start, checked and with its files looked at.
pub type Source = Box<dyn Fn() -> Result<Loaded, ConfigError> + Send + Sync>;

/// What of a configuration is made without a look at what runs: the rules, the tokens, the terms of the public listener.
pub(super) struct Made {
    pub(super) rules: Rules,
    pub(super) tokens: Vec<Token>,
    pub(super) terms: ws::Terms,
}

impl Made {
    pub(super) fn of(config: &Config) -> Result<Self, StartError> {
        let rules = Rules::new(&config.topics, &config.clients.message)
            .map_err(|bad| StartError::Config(bad.iter().map(BadRule::to_string).collect::<Vec<_>>().join("\n")))?;
        let addresses = ws::Addresses::new(&config.http).map_err(|bad| StartError::Config(bad.to_string()))?;
        let (Span(auth_timeout), path) = (config.auth.timeout, config.http.path.clone());
        let terms = ws::Terms { path, auth_timeout, compression: config.ws.compression, addresses };
        Ok(Self { rules, tokens: tokens(&config.grpc)?, terms })
    }
}

/// What the hub has of a configuration.
pub(super) fn live(config: &Config, rules: Rules) -> Live {
    let store = &config.store;
    Live {
        limits: config.limits.clone(),
        settings: Settings::of(&config.delivery, &config.heartbeat, &config.limits),
        presence: config.presence.clone(),
        alerts: config.alerts.clone(),
        drain: config.drain,
        notice: config.shutdown.lb_delay.0,
        clients: config.clients.clone(),
        rules,
        public_claims: config.auth.public_claims.clone(),
        guests_max: config.auth.anonymous_connections,
        quotas: Quotas {
            ttl: store.ttl.0,
            max_ttl: store.max_ttl.0,
            max_bytes: store.max_bytes.0,
            pending_per_user: store.max_pending_per_user.limit(),
            devices_per_user: store.max_devices_per_user.limit(),
            device_ttl: store.device_ttl.0,
            overflow: store.overflow,
            idempotency_window: store.idempotency_window.0,
        },
    }
}

/// What gRPC has of it.
pub(super) fn bounds(config: &Config) -> grpc::Bounds {
    grpc::Bounds::of(&config.grpc, config.limits.notification_bytes)
}

fn tokens(config: &grpc::Config) -> Result<Vec<Token>, StartError> {
    let token = |token: &grpc::config::TokenConfig| {
        let sha256 =
            token.sha256().map_err(|error| StartError::Config(format!("grpc.tokens, `{}`: {error}", token.name)))?;
        Ok(Token::new(sha256, &token.name, token.scope_set()))
    };
    config.tokens.iter().map(token).collect()
}

/// What takes another configuration while it runs.
#[derive(Clone)]
pub(super) struct Running {
    pub(super) api: Api,
    pub(super) hub: Hub,
    pub(super) ws: Arc<ws::Context>,
    pub(super) tls: tls::Listeners,
    pub(super) tokens: Arc<Tokens>,
    pub(super) clients: Arc<grpc::Clients>,
    pub(super) bounds: watch::Sender<grpc::Bounds>,
    pub(super) shutdown: Arc<Mutex<Shutdown>>,
}

/// See the module's documentation. Cheap to clone.
#[derive(Clone)]
pub struct Reloader(Arc<Inner>);

struct Inner {
    running: Running,
    source: Source,
    /// What is in force; locked while it is replaced, so that reloads follow each other.
    current: tokio::sync::Mutex<Config>,
}

/// A configuration with all that can fail made.
struct Prepared {
    difference: Difference,
    warnings: Vec<String>,
    made: Made,
    authenticator: Authenticator,
    certificates: Vec<tls::Prepared>,
}

impl Reloader {
    /// Has it done by `Reload`.
    pub(super) fn new(running: Running, current: Config, source: Source) -> Self {
        let api = running.api.clone();
        let this = Self(Arc::new(Inner { running, source, current: tokio::sync::Mutex::new(current) }));
        let called = this.clone();
        api.set_reload_control(Some(Box::new(move || {
            let called = called.clone();
            Box::pin(async move { called.run().await })
        })));
        this
    }

    /// Has it done at each of these signals, too, until the stop.
    pub(super) fn follow(self, mut hang_up: Signal, life: &Lifecycle) {
        let stop = life.stopping().clone();
        life.spawn(async move {
            while let Some(Some(())) = stop.run_until_cancelled(hang_up.recv()).await {
                if self.run().await.is_err() {
                    self.0.running.hub.metrics().failure(Failure::ReloadRefused);
                }
            }
        });
    }

    /// Reads the configuration again and puts it in force, as far as that goes; or says why not. Whoever asks while another
    /// is at it waits for that. The log has the outcome, and the service manager hears that it is under way and over.
    ///
    /// # Errors
    /// A line for each thing that is wrong; then nothing has changed.
    pub async fn run(&self) -> Result<Reloaded, ReloadRefused> {
        let mut current = self.0.current.lock().await;
        systemd::reloading();
        let outcome = self.attempt(&mut current).await;
        match &outcome {
            Ok(reloaded) => {
                let keys = |changes: &[Change]| changes.iter().map(|change| change.key).collect::<Vec<_>>().join(" ");
                let (changed, needs_restart) = (keys(&reloaded.changed), keys(&reloaded.needs_restart));
                tracing::info!(%changed, %needs_restart, "the configuration was read again");
                for warning in &reloaded.warnings {
                    tracing::warn!(warning, "this will hardly do what is meant");
                }
            }
            Err(ReloadRefused(problems)) => {
                for problem in problems {
                    tracing::error!(problem, "the configuration is not taken; the one from before stays");
                }
            }
        }
        systemd::reloaded();
        outcome
    }

    async fn attempt(&self, current: &mut Config) -> Result<Reloaded, ReloadRefused> {
        let (this, running) = (self.clone(), current.clone());
        // Files may lie on a disk that takes its time.
        let prepared = tokio::task::spawn_blocking(move || this.0.prepare(&running)).await;
        let prepared = prepared.map_err(|_| ReloadRefused(vec!["the node stops".to_owned()]))??;
        // From a place that is new: with keys of which none has come the node would refuse everybody.
        let fetched = prepared.authenticator.fetch_missing(self.0.running.hub.metrics()).await;
        fetched.map_err(|problem| ReloadRefused(vec![problem]))?;
        let before = std::mem::replace(current, prepared.difference.config.clone());
        Ok(self.0.running.take(&before, prepared))
    }
}

impl Inner {
    /// Makes all that can fail. Blocks.
    fn prepare(&self, current: &Config) -> Result<Prepared, ReloadRefused> {
        let wrong = |error: ConfigError| ReloadRefused(error.problems().to_vec());
        let loaded = (self.source)().map_err(wrong)?;
        let difference = loaded.against(current).map_err(wrong)?;
        let config = &difference.config;
        let also = |error: String| ReloadRefused(vec![error]);
        let made = Made::of(config).map_err(|error| also(error.to_string()))?;
        let authenticator = self.running.hub.authenticator().successor(&config.auth);
        let authenticator = authenticator.map_err(|error| also(error.to_string()))?.keeping(made.rules.claims());
        let certificates = self.running.tls.prepare(config, self.running.hub.clock(), self.running.hub.metrics());
        let certificates = certificates.map_err(ReloadRefused)?;
        Ok(Prepared { warnings: loaded.warnings(), made, authenticator, certificates, difference })
    }
}

impl Running {
    /// Puts everything in force. Nothing of it can fail.
    fn take(&self, before: &Config, prepared: Prepared) -> Reloaded {
        let Prepared { difference, mut warnings, made, authenticator, certificates } = prepared;
        let Difference { config, mut changed, needs_restart } = difference;
        let mut by_content = Vec::new();
        let now = self.hub.authenticator();
        let same_keys = authenticator.has_keys_of(&now);
        if !same_keys {
            authenticator.tell_of_keys(&now);
            by_content.push(if config.auth.keys.is_empty() { "auth.jwks.file" } else { "auth.keys" });
        }
        let same_rules = config.auth == before.auth && authenticator.kept_claims() == now.kept_claims();
        let authenticator = if same_keys && same_rules {
            // With the tokens that it knows to be good.
            now.refetch_keys();
            now
        } else {
            Arc::new(authenticator)
        };
        self.hub.store().set_bounds(config.store.max_bytes, config.store.max_disk);
        self.hub.reconfigure(live(&config, made.rules), authenticator);
        self.ws.reconfigure(made.terms);
        for certificate in certificates {
            let (key, came) = certificate.install(self.hub.metrics());
            if came == Certificate::Changed {
                by_content.push(key);
            }
        }
        self.clients.replace(config.grpc.clients.iter().map(|client| (client.name.as_str(), client.scope_set())));
        if self.tokens.replace(made.tokens) {
            by_content.push("grpc.tokens");
        }
        let bounds = bounds(&config);
        self.bounds.send_replace(bounds);
        self.api.set_call_limits(bounds.calls);
        *self.shutdown.lock() = config.shutdown.clone();
        if config.log.filter != before.log.filter {
            match (log_filter_override(), self.api.log_control()) {
                (Some(variable), _) => warnings.push(format!("log.filter: {variable} is set, and goes before it")),
                (None, Some(control)) => {
                    // It was checked.
                    let _ = control(&config.log.filter);
                }
                (None, None) => {}
            }
        }
        for key in by_content {
            let section = key.rsplit_once('.').map_or(key, |(section, _)| section);
            let is_named = |change: &Change| match key {
                "grpc.tokens" => change.key == key,
                _ => change.key.starts_with(section),
            };
            if !changed.iter().any(is_named) {
                changed.push(Change { key, old: String::new(), new: String::new() });
            }
        }
        changed.sort_by_key(|change| place_of(change.key));
        Reloaded { changed, needs_restart, warnings }
    }
}
