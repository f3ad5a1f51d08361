//! What of the configuration may change while the hub runs. It is one snapshot that is replaced as a whole: who looks at
//! it sees all of the old or all of the new. To look costs neither a lock nor a count that others share, since that is
//! done for every message.

use std::{
    marker::PhantomData,
    ops::Deref,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};

use super::{AlertsConfig, Clients, DrainConfig, Hub, Presence, Quotas, Rules};
use crate::{
    auth::Authenticator,
    limits::{self, Limits},
    session::Settings,
    types::Count,
};

/// See the module's documentation.
#[derive(Debug)]
pub struct Live {
    /// `[limits]`.
    pub limits: Limits,
    /// `[delivery]`, `[heartbeat]`.
    pub settings: Settings,
    /// `[presence]`.
    pub presence: Presence,
    /// `[clients]`.
    pub clients: Clients,
    /// What clients may do with topics and towards each other.
    pub rules: Rules,
    /// `auth.public_claims`.
    pub public_claims: Vec<String>,
    /// `auth.anonymous_connections`.
    pub guests_max: Count,
    /// `[alerts]`.
    pub alerts: AlertsConfig,
    /// `[drain]`.
    pub drain: DrainConfig,
    /// `shutdown.lb_delay`.
    pub notice: Duration,
    /// `[store]`, for its quotas and TTLs.
    pub quotas: Quotas,
}

impl Live {
    /// The shortest of all spans after which something of a session may be due.
    pub(super) fn shortest_deadline(&self) -> Duration {
        self.settings.shortest_deadline().min(self.limits.write_timeout.0)
    }
}

/// A part of the snapshot. To be looked at and let go of: what is kept is as old as the look.
pub struct View<T>(Guard<Arc<Live>>, PhantomData<fn() -> T>);

impl<T> View<T> {
    pub(super) fn of(live: &ArcSwap<Live>) -> Self {
        Self(live.load(), PhantomData)
    }
}

impl<T> Deref for View<T>
where
    Live: AsRef<T>,
{
    type Target = T;

    fn deref(&self) -> &T {
        (**self.0).as_ref()
    }
}

/// The parts that are looked at by themselves.
macro_rules! parts {
    ($($part:ident: $kind:ty),* $(,)?) => {
        $(impl AsRef<$kind> for Live {
            fn as_ref(&self) -> &$kind {
                &self.$part
            }
        })*
    };
}

parts! { limits: Limits, settings: Settings, presence: Presence, clients: Clients, rules: Rules, alerts: AlertsConfig }

impl Hub {
    pub(super) fn live(&self) -> Guard<Arc<Live>> {
        self.0.shared.live.load()
    }

    /// Bounds.
    pub fn limits(&self) -> View<Limits> {
        View::of(&self.0.shared.live)
    }

    /// Connections at once: `limits.connections`, or what the descriptors leave, if that is less. 0: no bound.
    pub fn connections_max(&self) -> u64 {
        let most = [self.limits().connections.0.into(), self.0.connections_within.load(Ordering::Relaxed)];
        most.into_iter().filter(|most| *most > 0).min().unwrap_or_default()
    }

    /// Has no more connections than so many, whatever `limits.connections` says. Before [`Hub::start`].
    pub fn keep_connections_within(&self, most: u64) {
        self.0.connections_within.store(most.max(1), Ordering::Relaxed);
    }

    /// Delivery and heartbeat.
    pub fn settings(&self) -> View<Settings> {
        View::of(&self.0.shared.live)
    }

    pub(super) fn presence(&self) -> View<Presence> {
        View::of(&self.0.shared.live)
    }

    pub(super) fn clients(&self) -> View<Clients> {
        View::of(&self.0.shared.live)
    }

    pub(super) fn rules(&self) -> View<Rules> {
        View::of(&self.0.shared.live)
    }

    /// Bounds on what is stored.
    pub fn quotas(&self) -> Quotas {
        self.live().quotas
    }

    /// Who may come in.
    pub fn authenticator(&self) -> Arc<Authenticator> {
        self.0.authenticator.load_full()
    }

    /// Follows the sources of keys until the stop.
    pub fn follow_keys(&self) {
        let hub = self.clone();
        let changes = self.0.keys_changed.subscribe();
        crate::auth::follow_keys(move || hub.authenticator(), &changes, &self.0.life, self.metrics());
    }

    /// Takes another configuration, and whoever lets in by it. Sessions that are there live by what of it concerns them
    /// from now on; each is looked at within a second, since what it waits for may be due sooner.
    pub fn reconfigure(&self, live: Live, authenticator: Arc<Authenticator>) {
        let sooner = live.shortest_deadline() < self.live().shortest_deadline();
        self.0.wheel.set_longest(live.shortest_deadline());
        let before = self.0.authenticator.swap(authenticator);
        if !Arc::ptr_eq(&before, &self.authenticator()) {
            self.0.keys_changed.send_replace(());
            before.retire();
        }
        self.0.shared.live.store(Arc::new(live));
        self.0.leavers.linger_changed();
        self.0.topic_leavers.linger_changed();
        self.0.reconfigured.notify_one();
        if sooner {
            let hub = self.clone();
            self.0.life.spawn(async move { hub.look_at_all().await });
        }
    }

    /// Has the wheel look at every session, those of a slice at a time.
    async fn look_at_all(&self) {
        let mut after = None;
        loop {
            let page = self.session_page(after, limits::FANOUT_SLICE_SESSIONS);
            let Some(last) = page.last() else { return };
            after = Some(last.id);
            for handle in &page {
                self.schedule_look(handle);
            }
            tokio::task::yield_now().await;
        }
    }
}
