//! Traces for whoever collects them: OTLP over HTTP (opentelemetry.io/docs/specs/otlp, version 1), `POST /v1/traces` with
//! protobuf. The cargo feature `otlp`; without it there is the section of the configuration, and no more.
//!
//! * `config.rs`: the section `[otlp]`, and what its files hold.
//! * `export.rs`: batches, and what becomes of them; `send.rs`: one request; `wire.rs`: the messages.
//!
//! The rule: nobody waits for the collector. What it does not take in time is dropped and counted.

pub mod config;
#[cfg(feature = "otlp")]
mod export;
#[cfg(feature = "otlp")]
mod send;
#[cfg(feature = "otlp")]
pub mod wire;

use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

pub use self::config::Config;
use crate::{clock::Clock, metrics::Metrics, trace::Tracer};

/// Whether this build can export.
pub const IS_BUILT_IN: bool = cfg!(feature = "otlp");

/// The export, while it runs. Dropped, it is cut off.
#[derive(Default)]
pub struct Exporting(Option<(CancellationToken, AbortOnDropHandle<()>)>);

impl Exporting {
    /// Exports what is left, within that time; nothing is exported from then on.
    pub async fn finish(self, within: Duration) {
        if let Some((stop, task)) = self.0 {
            stop.cancel();
            let _ = tokio::time::timeout(within, task).await;
        }
    }
}

/// Starts to record and to export, where there is somewhere to.
///
/// # Errors
/// A key of the section, and what is wrong with it.
#[cfg(feature = "otlp")]
pub fn start(
    config: &Config,
    clock: &Clock,
    metrics: &Metrics,
    runtime: &Handle,
) -> Result<(Tracer, Exporting), String> {
    let Some(endpoint) = config.endpoint().map_err(|why| format!("otlp.endpoint: {why}"))? else {
        return Ok((Tracer::default(), Exporting::default()));
    };
    let files = config.read_files().map_err(|(key, why)| format!("{key}: {why}"))?;
    tracing::info!(%endpoint, sample_ratio = %config.sample_ratio, "traces are exported");
    let tracer = Tracer::new(config.sample_ratio, clock.clone());
    let sender = send::Sender::new(endpoint, files, config.timeout.0);
    let stop = CancellationToken::new();
    let exporter = export::Exporter::new(tracer.clone(), metrics.clone(), sender, &config.service_name, stop.clone());
    let task = AbortOnDropHandle::new(runtime.spawn(exporter.run()));
    Ok((tracer, Exporting(Some((stop, task)))))
}

/// The same, where nothing can be exported.
///
/// # Errors
/// There is somewhere to export to.
#[cfg(not(feature = "otlp"))]
pub fn start(
    config: &Config,
    _clock: &Clock,
    _metrics: &Metrics,
    _runtime: &Handle,
) -> Result<(Tracer, Exporting), String> {
    match config.endpoint() {
        Ok(None) => Ok((Tracer::default(), Exporting::default())),
        Ok(Some(_)) => Err(format!("otlp.endpoint: {}", config::NOT_BUILT_IN)),
        Err(why) => Err(format!("otlp.endpoint: {why}")),
    }
}
