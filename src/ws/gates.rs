//! Who may come in just now: how many a second, in all and of one address; how many of one address; and whether the process
//! has the memory for more. A gate that the configuration does not set is not there.
//!
//! Connections that come too fast wait in the kernel's queue, where they cost nothing and nobody hears a refusal; those that
//! are behind its end try again by themselves. Handshakes beyond a rate are answered by 503: each is read already, so that
//! who sent it can be told when to come again, and others are not kept waiting behind him.

use std::{net::IpAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::addresses::{AddressRates, Addresses, Place, TooMany};
use crate::{
    api::process,
    clock::Instant,
    limits::{Limit, Limits, MEMORY_EASED_PERCENT, MEMORY_LOOK_INTERVAL},
    metrics::Metrics,
    session::Bucket,
};

/// So many at once, and so many a second.
struct Rate {
    a_second: u32,
    bucket: Mutex<Bucket>,
}

impl Rate {
    fn of(a_second: u32) -> Option<Self> {
        (a_second > 0).then(|| Self { a_second, bucket: Mutex::default() })
    }

    fn admit(&self, now: Instant) -> bool {
        self.bucket.lock().admit_of(self.a_second, self.a_second, now)
    }

    /// How long until one more is admitted; where that is now, it is.
    fn wait(&self, now: Instant) -> Duration {
        let mut bucket = self.bucket.lock();
        let wait = bucket.wait_of(self.a_second, self.a_second, now);
        if wait.is_zero() {
            bucket.charge(1);
        }
        wait
    }
}

/// See the module's documentation.
pub struct Gates {
    accepts: Option<Rate>,
    handshakes: Option<Rate>,
    address_handshakes: Option<AddressRates>,
    addresses: Arc<Addresses>,
    memory: Option<Memory>,
}

impl Gates {
    /// Those of the configuration.
    pub fn new(limits: &Limits) -> Self {
        let a_second = limits.address_handshakes_per_second.0;
        Self {
            accepts: Rate::of(limits.accepts_per_second.0),
            handshakes: Rate::of(limits.handshakes_per_second.0),
            address_handshakes: (a_second > 0).then(|| AddressRates::new(a_second)),
            addresses: Addresses::new(limits.connections_per_address.0 as usize),
            memory: process::memory_bound(limits.memory).map(Memory::new),
        }
    }

    /// Those of another configuration. Who is there stays counted, if he was; rates begin anew.
    pub fn successor(&self, limits: &Limits) -> Self {
        self.addresses.set_most(limits.connections_per_address.0 as usize);
        Self { addresses: Arc::clone(&self.addresses), ..Self::new(limits) }
    }

    /// Waits until one more connection may be accepted.
    pub async fn accept(&self, metrics: &Metrics) {
        let Some(rate) = &self.accepts else { return };
        let mut waits = false;
        loop {
            let wait = rate.wait(Instant::now());
            if wait.is_zero() {
                return;
            }
            if !std::mem::replace(&mut waits, true) {
                metrics.hit(Limit::AcceptsPerSecond);
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// A place for a socket that was accepted, where places are counted. `Err`: its address has too many.
    pub fn socket(&self, address: IpAddr) -> Result<Option<Box<Place>>, Limit> {
        self.addresses.open(address).map_err(|TooMany| Limit::ConnectionsPerAddress)
    }

    /// Whether one more handshake may be answered; by whom, is known now.
    pub fn handshake(&self, address: IpAddr, now: Instant) -> Result<(), Limit> {
        // The address first: what it is refused is no part of what all may do.
        if self.address_handshakes.as_ref().is_some_and(|rates| !rates.admit(address, now)) {
            return Err(Limit::AddressHandshakesPerSecond);
        }
        if self.handshakes.as_ref().is_some_and(|rate| !rate.admit(now)) {
            return Err(Limit::HandshakesPerSecond);
        }
        self.memory(now)
    }

    /// Whether there is memory for one more.
    pub fn memory(&self, now: Instant) -> Result<(), Limit> {
        match &self.memory {
            Some(memory) if memory.is_full(now, process::resident_bytes) => Err(Limit::Memory),
            _ => Ok(()),
        }
    }

    /// A place for a connection, where places are counted.
    pub fn connection(&self, address: IpAddr) -> Result<Option<Box<Place>>, Limit> {
        self.addresses.connect(address).map_err(|TooMany| Limit::ConnectionsPerAddress)
    }
}

/// Whether the process has as much memory as it may have. It is looked at where somebody wants to come in, and not more
/// often than worth it; once it was full it has to fall somewhat, lest it be full again with the next.
struct Memory {
    most: u64,
    looked: Mutex<(Option<Instant>, bool)>,
}

impl Memory {
    fn new(most: u64) -> Self {
        Self { most, looked: Mutex::new((None, false)) }
    }

    fn is_full(&self, now: Instant, resident: impl FnOnce() -> u64) -> bool {
        let mut looked = self.looked.lock();
        let (at, full) = &mut *looked;
        if at.is_some_and(|at| now.saturating_duration_since(at) < MEMORY_LOOK_INTERVAL) {
            return *full;
        }
        *at = Some(now);
        let resident = resident();
        let eased = self.most / 100 * MEMORY_EASED_PERCENT;
        let before = std::mem::replace(full, resident >= if *full { eased } else { self.most });
        match (before, *full) {
            (false, true) => tracing::warn!(resident, limit = self.most, "limits.memory is reached: nobody is let in"),
            (true, false) => tracing::info!(resident, limit = self.most, "there is memory again: clients are let in"),
            _ => {}
        }
        *full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_looked_at_now_and_then_and_has_to_fall_before_others_come() {
        let (memory, start) = (Memory::new(1000), Instant::now());
        let unseen = || -> u64 { panic!("it was looked at just before") };
        for (look, resident, full) in
            [(0, 999, false), (1, 1000, true), (2, 999, true), (3, 950, true), (4, 949, false), (5, 999, false)]
        {
            let at = start + look * MEMORY_LOOK_INTERVAL;
            assert_eq!(memory.is_full(at, || resident), full, "{resident} at {look}");
            assert_eq!(memory.is_full(at + MEMORY_LOOK_INTERVAL / 2, unseen), full);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn accepting_keeps_to_its_rate_and_counts_who_waits() {
        let limits = Limits { accepts_per_second: crate::types::Count(10), ..Limits::default() };
        let (gates, metrics, start) = (Gates::new(&limits), Metrics::default(), Instant::now());
        for _ in 0..10 {
            gates.accept(&metrics).await;
        }
        assert_eq!((start.elapsed(), metrics.hits(Limit::AcceptsPerSecond)), (Duration::ZERO, 0));
        for _ in 0..5 {
            gates.accept(&metrics).await;
        }
        let took = start.elapsed();
        assert!((500..=510).contains(&took.as_millis()), "{took:?}");
        assert_eq!(metrics.hits(Limit::AcceptsPerSecond), 5);
    }

    #[test]
    fn what_is_not_set_is_not_there() {
        let none = Limits { memory: crate::types::Level::Count(0), ..Limits::default() };
        let (gates, now, address) = (Gates::new(&none), Instant::now(), IpAddr::from([127, 0, 0, 1]));
        for _ in 0..10_000 {
            assert!(gates.handshake(address, now).is_ok());
            assert!(matches!((gates.socket(address), gates.connection(address)), (Ok(None), Ok(None))));
        }
    }
}
