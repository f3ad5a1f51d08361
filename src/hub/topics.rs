//! Topics in memory: who is in each, and in what order he is found.
//!
//! A member costs an entry of 24 bytes here, in the order of users and sessions, so that the sessions of a user stand side
//! by side: who came first and who went last is seen by looking at the neighbours, and a fan-out goes on behind the last
//! one it served. A topic is there while it has members, or users who may come back ([`Lingering`]).
//!
//! Lock order: a session's core, a topic's state. A shard of the registry is locked with none of a topic held; one that is
//! empty is taken out with both locked, and marked, so that whoever found it before looks again.

use std::{
    borrow::Borrow,
    cmp::Ordering,
    collections::{BTreeMap, HashMap, HashSet},
    hash::{BuildHasher as _, RandomState},
    ops::Bound,
    sync::Arc,
};

use parking_lot::{Mutex, MutexGuard};

use super::{
    handle::Handle,
    lane::{Audience, Lane, Listener},
};
use crate::{
    clock::Instant,
    limits,
    protocol::topics::Present,
    types::{Claims, SessionId, Topic, UnixMillis, UserId},
};

const SHARDS: usize = 16;

/// All topics that somebody is in.
#[derive(Debug)]
pub struct Topics {
    hasher: RandomState,
    shards: Box<[Shard]>,
}

/// Some of them, by name.
type Shard = Mutex<BTreeMap<Topic, Arc<Room>>>;

/// A topic in memory.
#[derive(Debug)]
pub struct Room {
    /// Its name.
    pub name: Topic,
    /// Whether account is kept of who comes and goes.
    pub shows_presence: bool,
    /// What is on its way to its members.
    pub lane: Lane,
    state: Mutex<RoomState>,
}

/// See [`Room`].
#[derive(Debug, Default)]
pub struct RoomState {
    members: BTreeMap<Seat, Standing>,
    /// Users with a session among them.
    users: usize,
    #[allow(clippy::box_collection, reason = "mostly not there, in every topic's memory")]
    lingering: Option<Box<HashMap<UserId, Lingering>>>,
    /// It was taken out of the registry.
    gone: bool,
}

/// A member's place: by user, then by session.
#[derive(Clone, Debug)]
struct Seat(Arc<Handle>);

/// How a member stands to a topic.
#[derive(Clone, Copy, Debug)]
struct Standing {
    /// Since when its user is in it, if it is the earliest of his.
    since: UnixMillis,
    /// Whether it is told of those who come and go.
    hears: bool,
    /// That its user came was not told, since there were too many, nor was he in a list since; so is nobody told that he
    /// left. Of a user with several members one says so.
    untold: bool,
}

/// A user whose last session ended a moment ago, and who counts as present until then.
#[derive(Clone, Debug)]
struct Lingering {
    since: UnixMillis,
    untold: bool,
    left_at: Instant,
    claims: Claims,
}

/// What a member takes in its topic, but for the room that the tree leaves between entries.
#[cfg(test)]
pub const MEMBER_BYTES: usize = size_of::<(Seat, Standing)>();

/// What a member left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// It was the last of its user's.
    pub last: bool,
    /// Nobody was told that he came.
    pub untold: bool,
    since: UnixMillis,
}

/// Who did not come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// What others may know of him.
    pub claims: Claims,
    /// Nobody was told that he came.
    pub untold: bool,
}

/// What has a place in the order of members, whether it is one or not.
pub trait Place {
    /// By user, then by session.
    fn key(&self) -> (&UserId, SessionId);
}

impl Place for Handle {
    fn key(&self) -> (&UserId, SessionId) {
        (&self.user.id, self.id)
    }
}

impl Place for (UserId, SessionId) {
    fn key(&self) -> (&UserId, SessionId) {
        (&self.0, self.1)
    }
}

impl<'a> Borrow<dyn Place + 'a> for Seat {
    fn borrow(&self) -> &(dyn Place + 'a) {
        &*self.0
    }
}

impl PartialEq for dyn Place + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for dyn Place + '_ {}

impl PartialOrd for dyn Place + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for dyn Place + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialEq for Seat {
    fn eq(&self, other: &Self) -> bool {
        self.0.key() == other.0.key()
    }
}

impl Eq for Seat {}

impl PartialOrd for Seat {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Seat {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key().cmp(&other.0.key())
    }
}

impl Topics {
    /// None yet.
    pub fn new() -> Self {
        Self { hasher: RandomState::new(), shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    fn shard(&self, name: &Topic) -> &Shard {
        &self.shards[self.hasher.hash_one(name) as usize % SHARDS]
    }

    /// A topic, if somebody is in it.
    pub fn get(&self, name: &Topic) -> Option<Arc<Room>> {
        self.shard(name).lock().get(name).cloned()
    }

    /// A topic, made where nobody was in it. `shows_presence` is asked of a new one.
    pub fn get_or_insert(&self, name: &Topic, shows_presence: impl FnOnce() -> bool) -> Arc<Room> {
        if let Some(room) = self.get(name) {
            return room;
        }
        let (name, shows_presence) = (name.clone(), shows_presence());
        let new =
            || Arc::new(Room { name: name.clone(), shows_presence, lane: Lane::default(), state: Mutex::default() });
        Arc::clone(self.shard(&name).lock().entry(name.clone()).or_insert_with(new))
    }

    /// Takes a topic out that nobody is in any more. With none of its locks held.
    pub fn forget_if_empty(&self, room: &Arc<Room>) {
        let mut shard = self.shard(&room.name).lock();
        let mut state = room.state();
        if state.is_empty() && !state.gone {
            state.gone = true;
            shard.remove(&room.name);
        }
    }

    /// The topics with the lowest names above `after` that begin with `prefix`, at most `max`, in order.
    pub fn page(&self, prefix: &str, after: Option<&Topic>, max: usize) -> Vec<Arc<Room>> {
        let mut page = Vec::new();
        for shard in &self.shards {
            let from = match after {
                Some(after) if after.as_str() >= prefix => Bound::Excluded(after.as_str()),
                _ => Bound::Included(prefix),
            };
            let shard = shard.lock();
            let rest = shard.range::<str, _>((from, Bound::Unbounded)).map(|(_, room)| room);
            page.extend(rest.take_while(|room| room.name.as_str().starts_with(prefix)).take(max).cloned());
        }
        page.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        page.truncate(max);
        page
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

impl Room {
    /// Who is in it.
    pub fn state(&self) -> MutexGuard<'_, RoomState> {
        self.state.lock()
    }

    /// The next members behind `after`, at most `max`.
    fn members(&self, after: Option<&dyn Place>, max: usize) -> Vec<Listener> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let state = self.state.lock();
        let rest = state.members.range::<dyn Place, _>((from, Bound::Unbounded)).take(max);
        rest.map(|(Seat(handle), standing)| Listener { handle: Arc::clone(handle), hears_presence: standing.hears })
            .collect()
    }

    /// The next sessions in it behind `after`, whether that is still in it or not, at most `max`: by user, then by id.
    pub fn sessions(&self, after: Option<&(UserId, SessionId)>, max: usize) -> Vec<Arc<Handle>> {
        let members = self.members(after.map(|after| after as &dyn Place), max);
        members.into_iter().map(|member| member.handle).collect()
    }
}

impl Audience for Room {
    fn slice(&self, after: Option<&Listener>) -> Vec<Listener> {
        self.members(after.map(|last| &*last.handle as &dyn Place), limits::FANOUT_SLICE_SESSIONS)
    }
}

impl RoomState {
    /// Whether it was taken out of the registry: look there again.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    fn is_empty(&self) -> bool {
        self.members.is_empty() && self.lingering.is_none()
    }

    /// Sessions in it.
    pub fn sessions(&self) -> usize {
        self.members.len()
    }

    /// Users in it, those who may come back among them.
    pub fn users(&self) -> usize {
        self.users + self.lingering.as_ref().map_or(0, |lingering| lingering.len())
    }

    /// Adds a session that is not in it. True: its user was not in it either.
    pub fn insert(&mut self, handle: &Arc<Handle>, now: UnixMillis, hears: bool) -> bool {
        let seat = Seat(Arc::clone(handle));
        let back = if self.has_neighbour(&seat) { None } else { Some(self.come_back(&handle.user.id)) };
        self.users += usize::from(back.is_some());
        let came = back == Some(None);
        let (since, untold) = back.flatten().unwrap_or((now, false));
        self.members.insert(seat, Standing { since, hears, untold });
        came
    }

    /// Nobody is told that the user of this member came.
    pub fn set_untold(&mut self, handle: &Arc<Handle>) {
        if let Some(standing) = self.members.get_mut(&Seat(Arc::clone(handle))) {
            standing.untold = true;
        }
    }

    /// Somebody was told that these are in it.
    pub fn listed(&mut self, users: &[Present]) {
        let mut known: Option<HashSet<&UserId>> = None;
        let mut knows =
            |user: &UserId| known.get_or_insert_with(|| users.iter().map(|one| &one.user).collect()).contains(user);
        for (Seat(handle), standing) in self.members.iter_mut().filter(|(_, standing)| standing.untold) {
            standing.untold = !knows(&handle.user.id);
        }
        let lingering = self.lingering.iter_mut().flat_map(|lingering| lingering.iter_mut());
        for (user, lingering) in lingering.filter(|(_, lingering)| lingering.untold) {
            lingering.untold = !knows(user);
        }
    }

    /// Whether a member is told of those who come and go, from now on.
    pub fn set_hears(&mut self, handle: &Arc<Handle>, hears: bool) {
        if let Some(standing) = self.members.get_mut(&Seat(Arc::clone(handle))) {
            standing.hears = hears;
        }
    }

    /// Takes a session out. `None`: it was not in it.
    pub fn remove(&mut self, handle: &Arc<Handle>) -> Option<Left> {
        let seat = Seat(Arc::clone(handle));
        let Standing { since, untold, .. } = self.members.remove(&seat)?;
        let last = !self.has_neighbour(&seat);
        self.users -= usize::from(last);
        if !last {
            // His time counts on with one that stays.
            let (before, behind) = (self.before(&seat), self.behind(&seat));
            let neighbour = before.into_iter().chain(behind).find(|neighbour| neighbour.0.user.id == handle.user.id);
            if let Some(standing) = neighbour.and_then(|neighbour| self.members.get_mut(&neighbour)) {
                standing.since = standing.since.min(since);
                standing.untold |= untold;
            }
        }
        Some(Left { last, untold, since })
    }

    fn before(&self, seat: &Seat) -> Option<Seat> {
        self.members.range::<Seat, _>(..seat).next_back().map(|(seat, _)| seat.clone())
    }

    fn behind(&self, seat: &Seat) -> Option<Seat> {
        self.members.range::<Seat, _>((Bound::Excluded(seat), Bound::Unbounded)).next().map(|(seat, _)| seat.clone())
    }

    /// Whether another session of the same user is in it.
    fn has_neighbour(&self, seat: &Seat) -> bool {
        let same = |other: Seat| other.0.user.id == seat.0.user.id;
        self.before(seat).is_some_and(same) || self.behind(seat).is_some_and(same)
    }

    /// The user whose last session has just ended counts as present until [`RoomState::lingered`] says otherwise.
    pub fn linger(&mut self, user: &UserId, left: Left, left_at: Instant, claims: Claims) {
        let lingering = Lingering { since: left.since, untold: left.untold, left_at, claims };
        self.lingering.get_or_insert_default().insert(user.clone(), lingering);
    }

    /// The user is back; since when he was there, and whether nobody was told.
    fn come_back(&mut self, user: &UserId) -> Option<(UnixMillis, bool)> {
        let lingering = self.take_lingering(user, |_| true)?;
        Some((lingering.since, lingering.untold))
    }

    /// The user did not come back since he left then: he is gone.
    pub fn lingered(&mut self, user: &UserId, left_at: Instant) -> Option<Gone> {
        let Lingering { claims, untold, .. } = self.take_lingering(user, |lingering| lingering.left_at == left_at)?;
        Some(Gone { claims, untold })
    }

    fn take_lingering(&mut self, user: &UserId, is: impl FnOnce(&Lingering) -> bool) -> Option<Lingering> {
        let lingering = self.lingering.as_mut()?;
        lingering.get(user).filter(|one| is(one))?;
        let taken = lingering.remove(user);
        if lingering.is_empty() {
            self.lingering = None;
        }
        taken
    }

    /// The users in it, in order, each with his latest session where he has one. What others may know of those who have is
    /// yet to be filled in.
    pub fn roll(&self) -> Vec<(Present, Option<Arc<Handle>>)> {
        let mut roll: Vec<(Present, Option<Arc<Handle>>)> = Vec::with_capacity(self.users());
        for (Seat(handle), Standing { since, .. }) in &self.members {
            match roll.last_mut() {
                // In the order of their ids, which is that in which they came.
                Some((present, latest)) if present.user == handle.user.id => {
                    present.sessions += 1;
                    present.since = present.since.min(*since);
                    *latest = Some(Arc::clone(handle));
                }
                _ => {
                    let (user, claims) = (handle.user.id.clone(), Claims::default());
                    roll.push((Present { user, sessions: 1, since: *since, claims }, Some(Arc::clone(handle))));
                }
            }
        }
        for (user, Lingering { since, claims, .. }) in self.lingering.iter().flat_map(|lingering| lingering.iter()) {
            let (user, since, claims) = (user.clone(), *since, claims.clone());
            roll.push((Present { user, sessions: 0, since, claims }, None));
        }
        roll
    }
}
