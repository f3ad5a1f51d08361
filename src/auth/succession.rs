//! One authenticator in the place of another: what a changed configuration makes of it, and who follows the sources of its
//! keys.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Authenticator, Config, LoadError, keyring, keyring::Keyring};
use crate::{lifecycle::Lifecycle, metrics::Metrics};

/// Follows the sources of keys until the stop: files that change, and the set that `auth.jwks.url` names. They are those of
/// whatever `current` says, which is asked anew at each of the `changes`.
pub fn follow_keys(
    current: impl Fn() -> Arc<Authenticator> + Clone + Send + 'static,
    changes: &watch::Receiver<()>,
    life: &Lifecycle,
    metrics: &Metrics,
) {
    keyring::follow(move || Arc::clone(&current().keys), changes, life, metrics);
}

impl Authenticator {
    /// What takes its place under another configuration: with the same tokens void, and with the keys that were fetched,
    /// where they are fetched from the same place. The files of keys are read.
    ///
    /// # Errors
    /// As of [`Authenticator::new`].
    pub fn successor(&self, config: &Config) -> Result<Authenticator, LoadError> {
        let next = Self::with(config, Keyring::succeeding(&self.keys, config)?, self.clock.clone());
        let revocations = Arc::clone(&self.revocations);
        Ok(Self { revocations, knows_guests: config.anonymous || self.knows_guests, ..next })
    }

    /// Whether it goes by the same keys as another.
    pub fn has_keys_of(&self, other: &Authenticator) -> bool {
        self.keys.current().is(other.keys.current().keys())
    }

    /// Says that the keys are others than those of the one before, and which of the new ones are weak.
    pub fn tell_of_keys(&self, before: &Authenticator) {
        self.keys.warn_of_weak(before.keys.current().keys());
        tracing::info!(keys = self.keys.current().len(), "keys were read again");
    }

    /// Fetches the keys that a server has, where some are to be fetched and never were.
    ///
    /// # Errors
    /// Why they are not there.
    pub async fn fetch_missing(&self, metrics: &Metrics) -> Result<(), String> {
        self.keys.fetch_missing(metrics).await
    }

    /// Whether the last look at a source of its keys failed; those from before stay.
    pub fn key_source_failing(&self) -> bool {
        self.keys.is_failing()
    }

    /// Has the set of keys fetched again, where there is one to fetch.
    pub fn refetch_keys(&self) {
        self.keys.refetch();
    }

    /// Lets those go on who wait for keys of this one, now that another has taken its place.
    pub fn retire(&self) {
        self.keys.retire();
    }
}
