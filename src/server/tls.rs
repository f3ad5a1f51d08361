//! The listeners' certificates over the daemon's life: read at the start, looked after while it runs.
//!
//! The files are looked at every second (a swapped symbolic link is a change like any other) and read once two looks found
//! the same. A reload (`reload.rs`) has them read at once, from other places where the configuration names others. What is
//! wrong with them changes nothing but the log, the metric and the alert `certificate_reload`: the listener goes on with the
//! certificate that it has.

use std::{convert::Infallible, time::Duration};

use tokio::time::{Instant, MissedTickBehavior};

use super::StartError;
use crate::{
    clock::Clock,
    config::Config,
    limits,
    metrics::Metrics,
    net::{
        Stamp,
        tls::{self, Reloaded, Speaks, Terms, Tls, TlsError},
    },
    types::TlsFiles,
};

/// TLS of each kind of listener, where it is spoken.
#[derive(Clone, Debug, Default)]
pub struct Listeners {
    /// The public one.
    pub http: Option<Tls>,
    /// The admin API's over TCP.
    pub grpc: Option<Tls>,
    /// The one for operators.
    pub ops: Option<Tls>,
}

impl Listeners {
    /// Reads every certificate and key. One that is not valid now is taken, and said.
    ///
    /// # Errors
    /// The first that cannot be used.
    pub fn open(config: &Config, clock: &Clock) -> Result<Self, StartError> {
        let open = |listener, files: &TlsFiles, speaks| -> Result<_, StartError> {
            if !files.is_set() {
                return Ok(None);
            }
            let tls = Tls::open(terms(config, listener, files, speaks));
            let tls = tls.map_err(|error| StartError::Config(format!("{listener}.tls: {error}")))?;
            if let Err(error) = tls.check_validity(clock.unix_millis()) {
                tracing::error!(listener, %error, "the certificate is not valid; who verifies it does not connect");
            }
            Ok(Some(tls))
        };
        Ok(Self {
            http: open("http", &config.http.tls, Speaks::Http1)?,
            grpc: open("grpc", &config.grpc.tls, Speaks::Http2)?,
            ops: open("ops", &config.ops.tls, Speaks::Http1)?,
        })
    }

    /// Reads what another configuration names, for each of them.
    ///
    /// # Errors
    /// A line for each that cannot be used.
    pub(super) fn prepare(
        &self,
        config: &Config,
        clock: &Clock,
        metrics: &Metrics,
    ) -> Result<Vec<Prepared>, Vec<String>> {
        let (mut all, mut problems) = (Vec::new(), Vec::new());
        for (tls, key, files, speaks) in [
            (&self.http, "http.tls.certificate_file", &config.http.tls, Speaks::Http1),
            (&self.grpc, "grpc.tls.certificate_file", &config.grpc.tls, Speaks::Http2),
            (&self.ops, "ops.tls.certificate_file", &config.ops.tls, Speaks::Http1),
        ] {
            let Some(tls) = tls else { continue };
            let listener = tls.listener();
            match tls.prepare(terms(config, listener, files, speaks), clock.unix_millis()) {
                Ok(prepared) => all.push(Prepared { key, prepared }),
                Err(error) => {
                    problems.push(format!("{listener}.tls: {error}"));
                    // Others are not taken, and what it has is as good as it was.
                    if tls.reads(files) {
                        tell(metrics, listener, tls.expires_at(), Err(error));
                    }
                }
            }
        }
        if problems.is_empty() { Ok(all) } else { Err(problems) }
    }

    /// That of a kind of listener.
    pub fn of(&self, name: &str) -> Option<&Tls> {
        match name {
            "http" => self.http.as_ref(),
            "grpc" => self.grpc.as_ref(),
            _ => self.ops.as_ref(),
        }
    }

    /// Says when they expire.
    pub fn note(&self, metrics: &Metrics) {
        for tls in self.clone().all() {
            metrics.set_certificate(tls.listener(), tls.expires_at());
        }
    }

    fn all(self) -> impl Iterator<Item = Tls> {
        [self.http, self.grpc, self.ops].into_iter().flatten()
    }
}

fn terms(config: &Config, listener: &'static str, files: &TlsFiles, speaks: Speaks) -> Terms {
    // Where there are tokens, a caller may have one of those.
    let anonymous = !config.grpc.tokens.is_empty() || config.grpc.insecure;
    Terms { listener, files: files.clone(), speaks, anonymous, handshakes: config.limits.tls_handshakes }
}

/// What a listener is to speak from now on.
pub(super) struct Prepared {
    /// The key that names its certificate.
    key: &'static str,
    prepared: tls::Prepared,
}

impl Prepared {
    /// Puts it in force; the key, and whether the certificate is another.
    pub(super) fn install(self, metrics: &Metrics) -> (&'static str, Reloaded) {
        let tls = self.prepared.tls().clone();
        let came = self.prepared.install();
        tell(metrics, tls.listener(), tls.expires_at(), Ok(came));
        (self.key, came)
    }
}

/// One listener's files, and what was made of them last.
struct Watched {
    tls: Tls,
    /// How they looked last, and how they looked when they were read.
    seen: Stamp,
    read: Stamp,
    /// Why they were refused then, and when.
    refused: Option<(TlsError, Instant)>,
}

/// What came of a look.
type News = (&'static str, i64, Result<Reloaded, TlsError>);

impl Watched {
    fn new(tls: Tls) -> Self {
        // Not how they look now: they may have changed since they were read.
        let stamp = tls.opened_stamp().clone();
        Self { tls, seen: stamp.clone(), read: stamp, refused: None }
    }

    /// Looks at the files, and reads them where they have changed and keep still.
    fn look(&mut self, clock: &Clock) -> Option<News> {
        let stamp = self.tls.stamp();
        let still = std::mem::replace(&mut self.seen, stamp.clone()) == stamp;
        let retry = self.refused.as_ref().is_some_and(|(_, at)| at.elapsed() >= limits::TLS_FILES_RETRY);
        if !(still && (stamp != self.read || retry)) {
            return None;
        }
        self.read = stamp;
        let came = self.tls.reload(clock.unix_millis());
        let before = self.refused.take();
        if let Err(error) = &came {
            self.refused = Some((error.clone(), Instant::now()));
            // Tried again by itself, and wrong in the same way: that was said.
            if retry && before.is_some_and(|(before, _)| before == *error) {
                return None;
            }
        }
        Some((self.tls.listener(), self.tls.expires_at(), came))
    }
}

/// Looks after the certificates. Ends with the daemon.
pub async fn watch(listeners: Listeners, metrics: Metrics, clock: Clock) -> Result<(), Infallible> {
    let mut all: Vec<Watched> = listeners.all().map(Watched::new).collect();
    let mut ticks = tokio::time::interval(if all.is_empty() { Duration::MAX / 4 } else { limits::TLS_FILES_INTERVAL });
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let look = {
            let clock = clock.clone();
            move || {
                let news: Vec<News> = all.iter_mut().filter_map(|one| one.look(&clock)).collect();
                (all, news)
            }
        };
        // Files may lie on a disk that takes its time.
        let news;
        match tokio::task::spawn_blocking(look).await {
            Ok(looked) => (all, news) = looked,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is being shut down.
                Err(_) => return Ok(()),
            },
        }
        for (listener, expires_at, came) in news {
            tell(&metrics, listener, expires_at, came);
        }
    }
}

fn tell(metrics: &Metrics, listener: &'static str, expires_at: i64, came: Result<Reloaded, TlsError>) {
    match came {
        Ok(reloaded) => {
            metrics.set_certificate(listener, expires_at);
            let expires_at = crate::types::UnixMillis(u64::try_from(expires_at).unwrap_or_default() * 1000).rfc3339();
            match reloaded {
                Reloaded::Changed => tracing::info!(listener, %expires_at, "the certificate was reloaded"),
                Reloaded::Same => tracing::info!(listener, %expires_at, "the certificate is the one in use"),
            }
        }
        Err(error) => {
            metrics.certificate_refused(listener);
            tracing::error!(listener, %error, "the new certificate cannot be used; the old one stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_that_changed_between_the_start_and_the_first_look_are_read_again() {
        let folder = tempfile::tempdir().unwrap();
        // In their place at once, as who renews certificates does it.
        let put = || {
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            let certificate = certificate.self_signed(&key).unwrap();
            let [crt, key] = [("crt", certificate.pem()), ("key", key.serialize_pem())].map(|(name, text)| {
                let (new, path) = (folder.path().join("new"), folder.path().join(name));
                fs::write(&new, text).unwrap();
                fs::rename(new, &path).unwrap();
                path
            });
            TlsFiles { certificate_file: crt, key_file: key, ..TlsFiles::default() }
        };
        let (files, clock) = (put(), Clock::system());
        let tls = Tls::open(Terms {
            listener: "http",
            files,
            speaks: Speaks::Http1,
            anonymous: false,
            handshakes: crate::types::Count(0),
        })
        .unwrap();
        put();
        let mut watched = Watched::new(tls);
        assert!(watched.look(&clock).is_none(), "it may not be whole yet");
        let (_, _, came) = watched.look(&clock).unwrap();
        assert_eq!(came.unwrap(), Reloaded::Changed);
        assert!(watched.look(&clock).is_none());
    }
}
