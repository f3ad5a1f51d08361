//! How many connections each address has, and how often it comes. An IPv6 address stands for its network of 64 bits, which
//! is what one customer has; an IPv4 address that is mapped into IPv6 is that IPv4 address.
//!
//! Who is there is counted exactly, in a table of those who are there. How often somebody comes is counted for as many
//! addresses as there are, in a table of one size: an address has a cell in each of two rows, chosen by hashes that nobody
//! knows, and is refused where both are spent. So who has one bad neighbour is let in by the other cell.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;

use crate::{
    clock::Instant,
    limits::{ADDRESS_RATE_CELLS, ADDRESS_REFUSALS_MAX},
    session::Bucket,
};

/// What counts as one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    V4(u32),
    V6(u64),
}

impl Key {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Key::V4(address.to_bits()),
            // The upper half: the network.
            IpAddr::V6(address) => Key::V6((address.to_bits() >> 64) as u64),
        }
    }
}

/// What one address has.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// Sockets that it opened, until their handshakes are done.
    sockets: usize,
    /// Connections past their handshake.
    connections: usize,
}

/// Who is there. Where that is not limited nobody is counted.
#[derive(Debug)]
pub struct Addresses {
    /// 0: no limit.
    most: AtomicUsize,
    held: Mutex<HashMap<Key, Held>>,
}

/// An address has as many as it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

/// A place in the table, for as long as it lives.
#[derive(Debug)]
pub struct Place {
    addresses: Arc<Addresses>,
    key: Key,
    of: Of,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Socket,
    Connection,
}

impl Addresses {
    /// So many connections of one address at once; 0: no limit.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most: AtomicUsize::new(most), held: Mutex::default() })
    }

    /// So many from now on. Who came while there was no limit is not counted.
    pub fn set_most(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// A socket that was just accepted, until its handshake is done; somewhat more of them than connections, so that who is
    /// one too many can be told. `None`: nobody is counted.
    pub fn open(self: &Arc<Self>, address: IpAddr) -> Result<Option<Box<Place>>, TooMany> {
        self.enter(address, Of::Socket)
    }

    /// A connection whose handshake was read. `None`: nobody is counted.
    pub fn connect(self: &Arc<Self>, address: IpAddr) -> Result<Option<Box<Place>>, TooMany> {
        self.enter(address, Of::Connection)
    }

    fn enter(self: &Arc<Self>, address: IpAddr, of: Of) -> Result<Option<Box<Place>>, TooMany> {
        let most = match (self.most.load(Ordering::Relaxed), of) {
            (0, _) => return Ok(None),
            (most, Of::Socket) => most.saturating_add(ADDRESS_REFUSALS_MAX),
            (most, Of::Connection) => most,
        };
        let key = Key::of(address);
        let mut held = self.held.lock();
        let count = held.entry(key).or_default().count(of);
        if *count >= most {
            return Err(TooMany);
        }
        *count += 1;
        Ok(Some(Box::new(Place { addresses: Arc::clone(self), key, of })))
    }
}

impl Held {
    fn count(&mut self, of: Of) -> &mut usize {
        match of {
            Of::Socket => &mut self.sockets,
            Of::Connection => &mut self.connections,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.addresses.held.lock();
        let Entry::Occupied(mut entry) = held.entry(self.key) else { return };
        *entry.get_mut().count(self.of) -= 1;
        if entry.get().sockets == 0 && entry.get().connections == 0 {
            entry.remove();
            // What a flood of addresses took is given back behind it.
            if held.capacity() > 1024 && held.len() < held.capacity() / 8 {
                held.shrink_to_fit();
            }
        }
    }
}

/// The rows that an address has a cell in.
const ROWS: usize = 2;

/// How often each address comes.
pub struct AddressRates {
    a_second: u32,
    hashes: [RandomState; ROWS],
    cells: Mutex<Box<[Bucket]>>,
}

impl AddressRates {
    /// So many at once, and so many a second.
    pub fn new(a_second: u32) -> Self {
        let cells = vec![Bucket::default(); ROWS * ADDRESS_RATE_CELLS].into_boxed_slice();
        Self { a_second, hashes: std::array::from_fn(|_| RandomState::new()), cells: Mutex::new(cells) }
    }

    /// Whether this address may come once more.
    pub fn admit(&self, address: IpAddr, now: Instant) -> bool {
        let key = Key::of(address);
        let mut cells = self.cells.lock();
        let mut admitted = false;
        for (row, hash) in self.hashes.iter().enumerate() {
            let cell = hash.hash_one(key) as usize % ADDRESS_RATE_CELLS;
            admitted |= cells[row * ADDRESS_RATE_CELLS + cell].admit_of(self.a_second, self.a_second, now);
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_so_many_places_and_an_ipv6_network_is_one() {
        let addresses = Addresses::new(2);
        for (first, same, other) in [
            ("10.0.0.1", "10.0.0.1", "10.0.0.2"),
            ("127.0.0.1", "::ffff:127.0.0.1", "127.0.0.2"),
            ("2001:db8:1:2::7", "2001:db8:1:2:ffff::1", "2001:db8:1:3::7"),
            ("::1", "::1", "fe80::1"),
        ] {
            let places = [addresses.connect(ip(first)).unwrap(), addresses.connect(ip(same)).unwrap()];
            assert!(addresses.connect(ip(first)).is_err() && addresses.connect(ip(same)).is_err(), "{first}");
            let _other = addresses.connect(ip(other)).unwrap();
            drop(places);
            assert!(addresses.connect(ip(same)).unwrap().is_some(), "a place that was given back");
        }
        assert!(addresses.held.lock().is_empty(), "nothing stays of who has left");
    }

    #[test]
    fn sockets_have_room_beyond_connections_to_be_told_so() {
        let addresses = Addresses::new(1);
        let sockets: Vec<_> = std::iter::from_fn(|| addresses.open(ip("10.0.0.1")).ok()).take(1000).collect();
        assert_eq!(sockets.len(), 1 + ADDRESS_REFUSALS_MAX);
        let connection = addresses.connect(ip("10.0.0.1"));
        assert!(connection.is_ok() && addresses.connect(ip("10.0.0.1")).is_err());
        drop(sockets);
        assert_eq!(addresses.held.lock().len(), 1);
        drop(connection);
        assert!(addresses.held.lock().is_empty());
    }

    #[test]
    fn another_limit_counts_who_was_counted_and_none_counts_nobody() {
        let addresses = Addresses::new(2);
        let places = [addresses.connect(ip("10.0.0.1")).unwrap(), addresses.connect(ip("10.0.0.1")).unwrap()];
        addresses.set_most(3);
        let third = addresses.connect(ip("10.0.0.1")).unwrap();
        addresses.set_most(0);
        assert!(addresses.connect(ip("10.0.0.1")).unwrap().is_none());
        addresses.set_most(1);
        assert_eq!(addresses.connect(ip("10.0.0.1")).unwrap_err(), TooMany);
        drop((places, third));
        assert!(addresses.connect(ip("10.0.0.1")).unwrap().is_some());
        assert!(addresses.held.lock().is_empty());
    }

    #[test]
    fn a_flood_of_addresses_leaves_no_memory_behind() {
        let addresses = Addresses::new(1);
        let places: Vec<_> =
            (0..100_000).map(|n| addresses.open(IpAddr::V4(Ipv4Addr::from_bits(n))).unwrap()).collect();
        drop(places);
        let held = addresses.held.lock();
        assert!(held.is_empty() && held.capacity() <= 1024, "{}", held.capacity());
    }

    #[test]
    fn an_address_that_comes_too_often_is_refused_and_hardly_another_with_it() {
        let (rates, now) = (AddressRates::new(5), Instant::now());
        let bad = |n: u32| IpAddr::V4(Ipv4Addr::from_bits(0x0A00_0000 + n));
        let come = |address, now| (0..20).filter(|_| rates.admit(address, now)).count();
        assert_eq!(come(bad(0), now), 5);
        assert_eq!(come(ip("2001:db8::1"), now), 5);
        assert_eq!(come(ip("2001:db8::2"), now), 0, "of the same network");
        assert_eq!(come(bad(0), now + Duration::from_secs(1)), 5);
        // A hundred of them hold a hundred cells of each row; another has both of its own among them once in thousands.
        (1..100).for_each(|n| {
            come(bad(n), now);
        });
        let refused = (0..1000).filter(|n| !rates.admit(bad(1_000_000 + n), now)).count();
        assert!(refused <= 5, "{refused}");
    }
}
