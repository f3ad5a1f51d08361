//! Who listens to events, and who of a group gets a client's message.
//!
//! A message is given to that member of a group who has the fewest to do, unanswered or not even taken, the longest
//! without one among equals. So replicas that keep up take turns, and one that hangs is left with what it had. It waits in the member's own
//! queue until the member takes it; where the member goes first, it is handed on to another. What nobody takes any more
//! is let go of: the client hears that nobody answered.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use futures_util::task::AtomicWaker;

use crate::{
    limits,
    types::{Event, EventBody, Forwarded, TypeName, UserId},
};

/// What a consumer wants.
#[derive(Clone, Debug)]
pub struct Interest {
    /// A bit a type, by its place in [`EventBody::NAMES`].
    pub types: u32,
    /// Only events of this user.
    pub user: Option<UserId>,
    /// Only messages of these types; none: of all.
    pub message_types: Vec<TypeName>,
    /// Whom it shares messages with.
    pub group: Option<Box<str>>,
    /// Whether it answers messages: it asked for them, and does not only look at all there is.
    pub serves: bool,
}

impl Default for Interest {
    /// In everything, as a service.
    fn default() -> Self {
        Self { types: Self::ALL_TYPES, user: None, message_types: Vec::new(), group: None, serves: true }
    }
}

impl Interest {
    /// Every type.
    pub const ALL_TYPES: u32 = u32::MAX;
    /// The bit of messages.
    const MESSAGES: u32 = 1 << EventBody::MESSAGE_RECEIVED;

    /// Whether it is an event for this consumer.
    pub fn wants(&self, body: &EventBody) -> bool {
        self.types & (1 << body.index()) != 0
            && self.user.as_ref().is_none_or(|user| body.user() == Some(user))
            && match body {
                EventBody::MessageReceived(message) => self.names(&message.type_name),
                _ => true,
            }
    }

    /// Whether it wants messages of this type from this user.
    pub fn wants_message(&self, user: &UserId, type_name: &TypeName) -> bool {
        self.wants_messages() && self.user.as_ref().is_none_or(|one| one == user) && self.names(type_name)
    }

    /// Whether it wants any messages.
    pub(super) fn wants_messages(&self) -> bool {
        self.types & Self::MESSAGES != 0
    }

    fn names(&self, type_name: &TypeName) -> bool {
        self.message_types.is_empty() || self.message_types.contains(type_name)
    }
}

/// A consumer as emitters see it.
#[derive(Debug)]
pub struct Seat {
    /// Which.
    pub id: u64,
    /// What it wants.
    pub interest: Interest,
    /// Whom to wake.
    pub task: AtomicWaker,
    /// The sequence that it reads next, for who asks how far it is behind.
    pub place: AtomicU64,
    /// The requests that it was given and that are open, where it is of a group.
    unanswered: AtomicUsize,
}

/// A request that members of groups were given. They have it to do for as long as this is there.
#[derive(Debug, Default)]
pub struct Open(Vec<Arc<Seat>>);

impl Open {
    fn count(&mut self, seat: &Arc<Seat>) {
        seat.unanswered.fetch_add(1, Ordering::Relaxed);
        self.0.push(Arc::clone(seat));
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        for seat in &self.0 {
            seat.unanswered.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// What waits for one member of a group.
#[derive(Debug)]
pub enum Queued {
    /// A message.
    Message(Arc<Event>),
    /// So many found no room, the last of them with that sequence.
    Lost {
        /// How many.
        count: u64,
        /// The sequence of the last one.
        last: u64,
    },
}

impl Queued {
    /// Its place in the order of events.
    pub fn sequence(&self) -> u64 {
        match self {
            Queued::Message(event) => event.sequence,
            Queued::Lost { last, .. } => *last,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Queued::Message(event) => message_of(event).map_or(0, Forwarded::bytes),
            Queued::Lost { .. } => 0,
        }
    }
}

/// A client's message, where an event is one.
pub fn message_of(event: &Event) -> Option<&Forwarded> {
    match &event.body {
        EventBody::MessageReceived(message) => Some(message),
        _ => None,
    }
}

/// All consumers.
#[derive(Debug, Default)]
pub struct Audience {
    members: Vec<Member>,
    joined: u64,
    turns: u64,
}

#[derive(Debug)]
struct Member {
    seat: Arc<Seat>,
    queue: VecDeque<Queued>,
    bytes: usize,
    /// When it last had its turn.
    turn: u64,
}

impl Member {
    fn group(&self) -> Option<&str> {
        self.seat.interest.group.as_deref()
    }

    /// What speaks against giving it so many bytes more, the gravest first: that it takes no more, how much it has to do,
    /// how lately it got something.
    fn load(&self, bytes: usize) -> (bool, usize, u64) {
        let unanswered = self.seat.unanswered.load(Ordering::Relaxed);
        (!self.has_room(bytes), unanswered.max(self.queue.len()), self.turn)
    }

    /// Those of no group read the ring.
    fn has_room(&self, bytes: usize) -> bool {
        self.group().is_none()
            || self.queue.is_empty()
            || (self.queue.len() < limits::GROUP_QUEUE_MESSAGES_MAX
                && self.bytes.saturating_add(bytes) <= limits::GROUP_QUEUE_BYTES_MAX)
    }
}

/// Who gets a message.
#[derive(Debug)]
pub struct Chosen {
    /// Places among the members.
    places: Vec<usize>,
    /// Whether one of them takes it and serves.
    pub served: bool,
}

impl Audience {
    /// A new consumer.
    pub fn join(&mut self, interest: Interest, place: u64) -> Arc<Seat> {
        self.joined += 1;
        let (task, place) = (AtomicWaker::new(), AtomicU64::new(place));
        let seat = Arc::new(Seat { id: self.joined, interest, task, place, unanswered: AtomicUsize::new(0) });
        self.members.push(Member { seat: Arc::clone(&seat), queue: VecDeque::new(), bytes: 0, turn: 0 });
        seat
    }

    /// Who gets a message: whoever wants it and is of no group, and one of each group. `None`: nobody takes it.
    pub fn choose(&self, event: &Event) -> Option<Chosen> {
        let bytes = message_of(event).map_or(0, Forwarded::bytes);
        let mut chosen: Vec<usize> = Vec::new();
        for (place, member) in self.members.iter().enumerate() {
            if !member.seat.interest.wants(&event.body) {
                continue;
            }
            let of_group =
                |other: &&mut usize| member.group().is_some() && self.members[**other].group() == member.group();
            match chosen.iter_mut().find(of_group) {
                None => chosen.push(place),
                Some(other) if member.load(bytes) < self.members[*other].load(bytes) => *other = place,
                Some(_) => {}
            }
        }
        let takers = || chosen.iter().map(|place| &self.members[*place]).filter(|member| member.has_room(bytes));
        let (taken, served) = (takers().next().is_some(), takers().any(|member| member.seat.interest.serves));
        taken.then_some(Chosen { places: chosen, served })
    }

    /// Gives them the message, numbered by now. Who has to be woken, and what says that it is unanswered.
    pub fn give(&mut self, event: &Arc<Event>, chosen: Chosen) -> (Vec<Arc<Seat>>, Open) {
        let bytes = message_of(event).map_or(0, Forwarded::bytes);
        let awaits_reply = message_of(event).is_some_and(|message| message.id.is_some());
        let mut open = Open::default();
        let mut takers = Vec::with_capacity(chosen.places.len());
        for place in chosen.places {
            let member = &mut self.members[place];
            takers.push(Arc::clone(&member.seat));
            if member.group().is_none() {
                continue;
            }
            self.turns += 1;
            member.turn = self.turns;
            if member.has_room(bytes) {
                member.bytes += bytes;
                member.queue.push_back(Queued::Message(Arc::clone(event)));
                if awaits_reply {
                    open.count(&member.seat);
                }
            } else if let Some(Queued::Lost { count, last }) = member.queue.back_mut() {
                (*count, *last) = (*count + 1, event.sequence);
            } else {
                member.queue.push_back(Queued::Lost { count: 1, last: event.sequence });
            }
        }
        (takers, open)
    }

    /// The place in the order of what waits first for a member.
    pub fn first(&self, seat: &Seat) -> Option<u64> {
        self.member(seat)?.queue.front().map(Queued::sequence)
    }

    /// Takes it out.
    pub fn take(&mut self, seat: &Seat) -> Option<Queued> {
        let member = self.members.iter_mut().find(|member| member.seat.id == seat.id)?;
        let queued = member.queue.pop_front()?;
        member.bytes -= queued.bytes();
        Some(queued)
    }

    fn member(&self, seat: &Seat) -> Option<&Member> {
        self.members.iter().find(|member| member.seat.id == seat.id)
    }

    /// A consumer has gone: what waited for it is handed on to others of its group who have room. Who has to be woken.
    pub fn leave(&mut self, seat: &Seat) -> Vec<Arc<Seat>> {
        let Some(place) = self.members.iter().position(|member| member.seat.id == seat.id) else { return Vec::new() };
        let mut gone = self.members.remove(place);
        let mut takers = Vec::new();
        for queued in std::mem::take(&mut gone.queue) {
            let Queued::Message(event) = &queued else { continue };
            let bytes = queued.bytes();
            let others = self.members.iter_mut().filter(|other| other.group() == gone.group());
            let heir =
                others.filter(|other| other.seat.interest.wants(&event.body)).min_by_key(|other| other.load(bytes));
            let Some(heir) = heir.filter(|heir| heir.has_room(bytes)) else { continue };
            self.turns += 1;
            heir.turn = self.turns;
            heir.bytes += bytes;
            let behind = heir.queue.partition_point(|other| other.sequence() < event.sequence);
            takers.push(Arc::clone(&heir.seat));
            heir.queue.insert(behind, queued);
        }
        takers
    }
}
