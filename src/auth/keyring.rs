//! The keys as they change: files that are read again when they change, a set that is fetched again and again.
//!
//! * A source that fails, or brings what is no key, leaves what it last brought in force; that is said once, and again when
//!   it changes or ends.
//! * At the start every file must be good. A server need not answer: until it first has, the node is not ready, and what its
//!   keys would vouch for is refused.
//! * A token that names a key that nobody knows has the set fetched at once, [`limits::JWKS_ASKED_AT_ONCE`] times, and then
//!   once per [`limits::JWKS_ASKED_EVERY`], whatever clients send. Whoever comes during a fetch waits for that one.

use std::{path::Path, sync::Arc, time::Duration};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};

use super::{
    LoadError,
    config::{Config, JwksConfig, KeyConfig},
    fetch::{Fetcher, Place},
    jwk,
    keys::{self, Key, KeySet},
};
use crate::{
    clock::Instant,
    lifecycle::Lifecycle,
    limits,
    metrics::{Failure, Metrics},
    net::Stamp,
};

/// How soon a fetch that failed is tried again: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// See the module's documentation.
pub(super) struct Keyring {
    configs: Vec<KeyConfig>,
    jwks: JwksConfig,
    weak_too: bool,
    current: RwLock<Arc<KeySet>>,
    /// How the files looked before they were read first.
    opened: Stamp,
    parts: Mutex<Parts>,
    remote: Option<Remote>,
}

/// What each source last brought.
#[derive(Default)]
struct Parts {
    files: Vec<Arc<Key>>,
    fetched: Vec<Arc<Key>>,
    /// What is wrong with the files, as it was last said.
    trouble: Option<String>,
}

/// A set that a server has.
struct Remote {
    place: Place,
    fetcher: Fetcher,
    /// How the fetches went so far.
    outcome: watch::Sender<Outcome>,
    wanted: Notify,
    asking: Mutex<Asking>,
}

#[derive(Clone, Debug, Default)]
struct Outcome {
    /// One was good.
    ever: bool,
    /// Why the last one was not.
    trouble: Option<String>,
}

/// How often clients may have it fetched.
#[derive(Default)]
struct Asking {
    under_way: bool,
    spent: u32,
    since: Option<Instant>,
}

impl Asking {
    /// Whether a client's token may have it fetched now.
    fn admit(&mut self, now: Instant) -> bool {
        let every = limits::JWKS_ASKED_EVERY;
        if let Some(since) = self.since {
            let back = now.saturating_duration_since(since).as_nanos() / every.as_nanos();
            let back = u32::try_from(back).unwrap_or(u32::MAX).min(self.spent);
            self.spent -= back;
            self.since = (self.spent > 0).then(|| since + every * back);
        }
        let admitted = self.spent < limits::JWKS_ASKED_AT_ONCE;
        if admitted {
            self.spent += 1;
            self.since.get_or_insert(now);
        }
        admitted
    }
}

impl Keyring {
    /// Reads all files.
    pub(super) fn new(config: &Config) -> Result<Self, LoadError> {
        let jwks = &config.jwks;
        let wrong = |field, problem| LoadError::Jwks { field, problem };
        let remote = if jwks.url.is_empty() {
            None
        } else {
            let place = Place::parse(&jwks.url).map_err(|why| wrong("url", why))?;
            let about = |why| wrong("ca_file", format!("{}: {why}", jwks.ca_file.display()));
            let fetcher = Fetcher::new(&jwks.ca_file).map_err(about)?;
            let (outcome, _) = watch::channel(Outcome::default());
            Some(Remote { place, fetcher, outcome, wanted: Notify::new(), asking: Mutex::default() })
        };
        let opened = Stamp::of(files(&config.keys, jwks));
        let keyring = Self {
            configs: config.keys.clone(),
            jwks: jwks.clone(),
            weak_too: config.weak_keys,
            current: RwLock::new(Arc::new(KeySet::new(Vec::new()))),
            opened,
            parts: Mutex::default(),
            remote,
        };
        let files = keyring.read_files()?;
        let mut parts = keyring.parts.lock();
        parts.files = files;
        keyring.put_together(&parts);
        drop(parts);
        Ok(keyring)
    }

    /// Reads all files, and takes over what was fetched, where that is fetched from the same place.
    pub(super) fn succeeding(before: &Self, config: &Config) -> Result<Self, LoadError> {
        let keyring = Self::new(config)?;
        if let (Some(old), Some(new)) = (&before.remote, &keyring.remote)
            && old.place == new.place
        {
            let mut parts = keyring.parts.lock();
            parts.fetched.clone_from(&before.parts.lock().fetched);
            keyring.put_together(&parts);
            drop(parts);
            let outcome = old.outcome.borrow().clone();
            new.outcome.send_replace(outcome);
        }
        Ok(keyring)
    }

    /// Fetches the set once, where it never was.
    pub(super) async fn fetch_missing(&self, metrics: &Metrics) -> Result<(), String> {
        let Some(remote) = self.remote.as_ref().filter(|remote| !remote.outcome.borrow().ever) else { return Ok(()) };
        match self.fetch(remote).await {
            Ok(set) => {
                self.fetched(remote, Ok(set), 0, metrics);
                Ok(())
            }
            Err(trouble) => {
                metrics.failure(Failure::KeySourceFailed);
                Err(format!("auth.jwks.url: {trouble}"))
            }
        }
    }

    /// Tells those who wait for a fetch that there will be none.
    pub(super) fn retire(&self) {
        if let Some(remote) = &self.remote {
            remote.outcome.send_modify(|_| {});
        }
    }

    /// The keys there are now.
    pub(super) fn current(&self) -> Arc<KeySet> {
        Arc::clone(&self.current.read())
    }

    /// Why what the server's keys would vouch for is refused, where it is.
    pub(super) fn trouble(&self) -> Option<String> {
        let remote = self.remote.as_ref()?;
        let outcome = remote.outcome.borrow();
        let why = outcome.trouble.clone().unwrap_or_else(|| format!("{} was not asked yet", remote.place));
        (!outcome.ever).then(|| format!("no keys were fetched for auth.jwks.url yet: {why}"))
    }

    /// Whether the last reading of the files failed, or the last fetch.
    pub(super) fn is_failing(&self) -> bool {
        let not_fetched = self.remote.as_ref().is_some_and(|remote| remote.outcome.borrow().trouble.is_some());
        not_fetched || self.parts.lock().trouble.is_some()
    }

    fn read_files(&self) -> Result<Vec<Arc<Key>>, LoadError> {
        let mut all = keys::load(&self.configs, self.weak_too)?;
        let file = &self.jwks.file;
        if !file.as_os_str().is_empty() {
            let about = |why| LoadError::Jwks { field: "file", problem: format!("{}: {why}", file.display()) };
            let text = keys::read(file, limits::JWKS_BYTES_MAX as u64, "a key set").map_err(about)?;
            let set = jwk::parse(&text, jwk::From::File, self.weak_too).map_err(about)?;
            say_passed_over(&file.display(), &set.passed_over);
            all.extend(set.keys.into_iter().map(Arc::new));
        }
        Ok(all)
    }

    /// What all sources brought, in force from now on; what was before, where that is other. Tokens that other keys vouched
    /// for are verified anew.
    fn put_together(&self, parts: &Parts) -> Option<Arc<KeySet>> {
        let keys: Vec<_> = parts.files.iter().chain(&parts.fetched).cloned().collect();
        if self.current.read().is(&keys) {
            return None;
        }
        Some(std::mem::replace(&mut *self.current.write(), Arc::new(KeySet::new(keys))))
    }

    /// Warns of the secrets that are shorter than they should be, but for those that were there before.
    pub(super) fn warn_of_weak(&self, before: &[Arc<Key>]) {
        for key in self.current().keys().iter().filter(|key| !before.iter().any(|one| one.is(key))) {
            if let Some((kid, bytes)) = key.weakness() {
                tracing::warn!(
                    kid,
                    bytes,
                    "this HMAC secret is too short for its algorithm; auth.weak_keys lets it pass"
                );
            }
        }
    }

    /// Reads the files again, which blocks. What is wrong with one leaves all of them as they were.
    pub(super) fn reload_files(&self, metrics: &Metrics) {
        let read = self.read_files();
        let mut parts = self.parts.lock();
        match read {
            Ok(files) => {
                parts.files = files;
                parts.trouble = None;
                if let Some(before) = self.put_together(&parts) {
                    self.warn_of_weak(before.keys());
                    tracing::info!(keys = self.current().len(), "keys were read again");
                }
            }
            Err(error) => {
                metrics.failure(Failure::KeySourceFailed);
                let trouble = error.to_string();
                if parts.trouble.as_ref() != Some(&trouble) {
                    tracing::error!(error = %trouble, "keys cannot be read again; those that were read before stay");
                    parts.trouble = Some(trouble);
                }
            }
        }
    }

    /// Has the set fetched now, whoever asked before.
    pub(super) fn refetch(&self) {
        if let Some(remote) = &self.remote {
            remote.wanted.notify_one();
        }
    }

    /// The files that keys come from.
    fn files(&self) -> impl Iterator<Item = &Path> {
        files(&self.configs, &self.jwks)
    }

    /// Reads the files again once one is another than it was, and has stayed so for a moment: half of a key is none.
    async fn follow_files(self: &Arc<Self>, metrics: &Metrics) {
        if self.files().next().is_none() {
            return std::future::pending().await;
        }
        // Not how they look now: they may have changed since they were read.
        let mut read = self.opened.clone();
        let mut seen = read.clone();
        let mut ticks = tokio::time::interval(limits::KEY_FILES_LOOKED_AT);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let now = Stamp::of(self.files());
            if now != read && now == seen {
                read.clone_from(&now);
                let (keyring, metrics) = (Arc::clone(self), metrics.clone());
                let _ = tokio::task::spawn_blocking(move || keyring.reload_files(&metrics)).await;
            }
            seen = now;
        }
    }

    async fn follow_remote(&self, metrics: &Metrics) {
        let Some(remote) = &self.remote else { return std::future::pending().await };
        let mut failures = 0u32;
        loop {
            remote.asking.lock().under_way = true;
            let fetched = self.fetch(remote).await;
            failures = if fetched.is_ok() { 0 } else { failures.saturating_add(1) };
            let pause = self.fetched(remote, fetched, failures, metrics);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = remote.wanted.notified() => {}
            }
        }
    }

    async fn fetch(&self, remote: &Remote) -> Result<jwk::Set, String> {
        let text = remote.fetcher.fetch(&remote.place).await?;
        jwk::parse(&text, jwk::From::Server, self.weak_too).map_err(|why| format!("{}: {why}", remote.place))
    }

    /// Takes in what a fetch brought, tells those who wait for it, and says when the next one is due.
    fn fetched(
        &self,
        remote: &Remote,
        fetched: Result<jwk::Set, String>,
        failures: u32,
        metrics: &Metrics,
    ) -> Duration {
        let before = remote.outcome.borrow().clone();
        let (outcome, pause) = match fetched {
            Ok(set) => {
                let keys = set.keys.len();
                let mut parts = self.parts.lock();
                parts.fetched = set.keys.into_iter().map(Arc::new).collect();
                let changed = self.put_together(&parts).is_some();
                drop(parts);
                if changed || before.trouble.is_some() {
                    say_passed_over(&remote.place, &set.passed_over);
                    tracing::info!(from = %remote.place, keys, changed, "keys were fetched");
                }
                (Outcome { ever: true, trouble: None }, self.jwks.refresh.0)
            }
            Err(trouble) => {
                metrics.failure(Failure::KeySourceFailed);
                if before.trouble.as_ref() != Some(&trouble) {
                    let kept =
                        if before.ever { "the last good ones stay" } else { "tokens that need them are refused" };
                    tracing::error!(error = %trouble, "keys cannot be fetched; {kept}");
                }
                let pause = RETRY.0.saturating_mul(1 << (failures - 1).min(16)).min(RETRY.1);
                (Outcome { trouble: Some(trouble), ..before }, pause.min(self.jwks.refresh.0))
            }
        };
        // Under the lock: who asks from here on waits for the next one, and is not told of this.
        let mut asking = remote.asking.lock();
        asking.under_way = false;
        remote.outcome.send_replace(outcome);
        pause
    }

    /// Waits for keys that a token asks for and nobody knows; false where they are not asked for now.
    pub(super) async fn renewed(&self) -> bool {
        let Some(remote) = &self.remote else { return false };
        let mut outcome = remote.outcome.subscribe();
        {
            let mut asking = remote.asking.lock();
            if !asking.under_way {
                if !asking.admit(Instant::now()) {
                    return false;
                }
                // Whoever comes from here on waits for the same.
                asking.under_way = true;
                remote.wanted.notify_one();
            }
            // Under the lock, so that the end of a fetch that was seen under way is not missed.
            outcome.mark_unchanged();
        }
        outcome.changed().await.is_ok()
    }
}

/// Follows all sources of whatever keyring there is, until the stop. Of the keys that there are now weak ones are said.
pub(super) fn follow(
    current: impl Fn() -> Arc<Keyring> + Clone + Send + 'static,
    changes: &watch::Receiver<()>,
    life: &Lifecycle,
    metrics: &Metrics,
) {
    current().warn_of_weak(&[]);
    let (keyring, mut changed) = (current.clone(), changes.clone());
    let (of, stop) = (metrics.clone(), life.stopping().clone());
    life.spawn_essential("the key set", async move {
        loop {
            let keyring = keyring();
            tokio::select! {
                () = stop.cancelled() => return Ok::<(), std::convert::Infallible>(()),
                () = keyring.follow_remote(&of) => {}
                changed = changed.changed() => if changed.is_err() {
                    stop.cancelled().await;
                },
            }
        }
    });
    let (mut changed, metrics, stop) = (changes.clone(), metrics.clone(), life.stopping().clone());
    life.spawn_essential("the key files", async move {
        loop {
            let keyring = current();
            tokio::select! {
                () = stop.cancelled() => return Ok::<(), std::convert::Infallible>(()),
                () = keyring.follow_files(&metrics) => {}
                changed = changed.changed() => if changed.is_err() {
                    stop.cancelled().await;
                },
            }
        }
    });
}

fn say_passed_over(from: &dyn std::fmt::Display, passed_over: &[String]) {
    if let Some(first) = passed_over.first() {
        tracing::warn!(%from, keys = passed_over.len(), first = %first, "keys of this set are passed over");
    }
}

/// The files that keys come from.
fn files<'a>(keys: &'a [KeyConfig], jwks: &'a JwksConfig) -> impl Iterator<Item = &'a Path> {
    let of_keys = keys.iter().flat_map(|config| [&config.secret_file, &config.public_key_file]);
    of_keys.chain([&jwks.file]).map(|file| &**file).filter(|file| !file.as_os_str().is_empty())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::auth::config::Algorithm;

    #[tokio::test(start_paused = true)]
    async fn a_file_that_changed_between_the_start_and_the_first_look_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        // In its place at once, as who changes keys does it.
        let put = |secret: &str| {
            let new = folder.path().join("new");
            fs::write(&new, secret).unwrap();
            fs::rename(new, &file).unwrap();
        };
        put("a secret of 32 bytes and no less");
        let key = KeyConfig {
            kid: String::new(),
            algorithm: Algorithm::HS256,
            secret: Default::default(),
            secret_file: file.clone(),
            secret_base64: Default::default(),
            public_key_file: Default::default(),
        };
        let keyring = Arc::new(Keyring::new(&Config { keys: vec![key], ..Config::default() }).unwrap());
        let before = keyring.current();
        put("b secret of 32 bytes and no less");
        let life = Lifecycle::new();
        let ((_changes, changed), followed) = (watch::channel(()), Arc::clone(&keyring));
        follow(move || Arc::clone(&followed), &changed, &life, &Metrics::default());
        // Hours, on a clock that nobody waits for.
        let read = async {
            while Arc::ptr_eq(&keyring.current(), &before) {
                tokio::time::sleep(limits::KEY_FILES_LOOKED_AT).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(3600), read).await.expect("the new secret");
        assert_eq!(life.stop(Duration::from_secs(5)).await, 0);
    }

    #[test]
    fn unknown_names_have_keys_fetched_so_often_and_no_more() {
        let (mut asking, start) = (Asking::default(), Instant::now());
        let mut admitted =
            |at: Duration| std::iter::repeat_with(|| asking.admit(start + at)).take_while(|admitted| *admitted).count();
        let every = limits::JWKS_ASKED_EVERY;
        assert_eq!(admitted(Duration::ZERO), limits::JWKS_ASKED_AT_ONCE as usize);
        assert_eq!(admitted(every - Duration::from_millis(1)), 0);
        assert_eq!(admitted(every), 1);
        assert_eq!(admitted(every * 2 - Duration::from_millis(1)), 0, "what was left over counts on");
        assert_eq!(admitted(every * 1000), limits::JWKS_ASKED_AT_ONCE as usize);
    }
}
