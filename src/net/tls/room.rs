//! The handshakes that are under way. Where there are as many as there may be, the oldest makes room: who begins one and says
//! no more would else keep everybody out for as long as a handshake may take.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Room for so many.
#[derive(Debug)]
pub struct Room {
    most: AtomicUsize,
    under_way: Arc<Mutex<UnderWay>>,
}

#[derive(Debug, Default)]
struct UnderWay {
    next: u64,
    /// By their number, the oldest first. What is dropped loses its place.
    places: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A place among them, to be given back.
#[derive(Debug)]
pub struct Place {
    number: u64,
    held: oneshot::Receiver<()>,
    room: Arc<Mutex<UnderWay>>,
}

impl Room {
    /// Room for that many.
    pub fn new(most: usize) -> Self {
        Self { most: AtomicUsize::new(most), under_way: Arc::default() }
    }

    /// Room for that many from now on. Those under way stay until another begins.
    pub fn set_most(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// One more. The oldest loses its place where there would be too many.
    pub fn enter(&self) -> Place {
        let (sender, held) = oneshot::channel();
        let mut under_way = self.under_way.lock();
        let number = under_way.next;
        under_way.next += 1;
        // One, or more where there may be fewer than there were.
        let most = self.most.load(Ordering::Relaxed).max(1);
        let too_many = (under_way.places.len() + 1).saturating_sub(most);
        let oldest: Vec<_> = (0..too_many).map_while(|_| under_way.places.pop_first()).collect();
        under_way.places.insert(number, sender);
        drop(under_way);
        // Wakes its task, not under the lock.
        drop(oldest);
        Place { number, held, room: Arc::clone(&self.under_way) }
    }
}

impl Place {
    /// Waits until it is lost.
    pub async fn lost(&mut self) {
        // Nothing is ever sent.
        let _ = (&mut self.held).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let left = self.room.lock().places.remove(&self.number);
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn the_oldest_makes_room_for_the_newest() {
        let room = Room::new(2);
        let lost = |place: &mut Place| place.lost().now_or_never().is_some();
        let (mut first, mut second) = (room.enter(), room.enter());
        assert!(!lost(&mut first) && !lost(&mut second));
        let mut third = room.enter();
        assert!(lost(&mut first) && !lost(&mut second) && !lost(&mut third));
        drop(second);
        let mut fourth = room.enter();
        assert!(!lost(&mut third) && !lost(&mut fourth), "who is done has made room");
        drop((first, third, fourth));
        assert!(room.under_way.lock().places.is_empty());
    }

    #[test]
    fn with_less_room_than_there_was_as_many_go_as_are_too_many() {
        let room = Room::new(3);
        let mut places: Vec<Place> = (0..3).map(|_| room.enter()).collect();
        room.set_most(2);
        let lost = |place: &mut Place| place.lost().now_or_never().is_some();
        assert!(!places.iter_mut().any(lost), "nobody is sent away by it");
        places.push(room.enter());
        assert_eq!(places.iter_mut().map(lost).collect::<Vec<_>>(), [true, true, false, false]);
        room.set_most(3);
        places.push(room.enter());
        assert!(!lost(&mut places[2]));
    }
}
