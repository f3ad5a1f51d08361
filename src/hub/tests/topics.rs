//! Who is in a topic, seen from its registry: by user and session, since when, and what a member costs.

use std::sync::Arc;

use super::{
    super::{
        handle::Shared,
        talk::Errand,
        topics::{Gone, RoomState, Topics},
        *,
    },
    line::Line,
    support::{Bounds, World, device, notification, user},
};
use crate::{
    protocol::{ack_mode::AckMode, topics::Present},
    session::{HeartbeatConfig, Options, Session},
    types::{Claims, Device, Topic, UnixMillis},
};

/// Topics `log.*` are durable, and keep what [`RECORDS_MAX`] says.
pub fn durable_rule() -> TopicRule {
    let everyone = || vec!["*".to_owned()];
    let (subscribe, publish) = (everyone(), everyone());
    TopicRule {
        pattern: "log.*".to_owned(),
        subscribe,
        publish,
        durable: true,
        max_records: Some(RECORDS_MAX),
        ..TopicRule::default()
    }
}

/// What durable topics keep here.
const RECORDS_MAX: u32 = 6;

fn topic(name: &str) -> Topic {
    Topic::parse(name).unwrap()
}

/// A session of a user that nobody else knows of.
fn session(user: &Arc<User>, shared: &Arc<Shared>) -> Arc<Handle> {
    let now = shared.clock.now();
    let session = Session::new(&Options::default(), AckMode::Transport, &HeartbeatConfig::default(), 1, now);
    let peer = Peer { remote: ([127, 0, 0, 1], 1).into(), user_agent: None };
    let wire = Arc::new(Line::default());
    let (id, user, shared) = (SessionId::generate(), Arc::clone(user), Arc::clone(shared));
    Arc::new(Handle::new(id, user, Device::UNNAMED, peer, session, (wire, None), shared))
}

fn shared() -> Arc<Shared> {
    Arc::clone(&World::new(Bounds::default()).hub.0.shared)
}

#[tokio::test]
async fn a_user_is_in_a_topic_from_his_first_session_to_his_last() {
    let (topics, shared) = (Topics::new(), shared());
    let room = topics.get_or_insert(&topic("t"), || true);
    let [ann, bob] = ["ann", "bob"].map(|name| Arc::new(User::new(user(name))));
    let (first, second, third) = (session(&ann, &shared), session(&ann, &shared), session(&bob, &shared));
    let mut state = room.state();
    assert!(state.insert(&second, UnixMillis(1), false), "the first of ann's");
    assert!(state.insert(&third, UnixMillis(2), false), "the first of bob's");
    assert!(!state.insert(&first, UnixMillis(3), false));
    assert_eq!((state.sessions(), state.users()), (3, 2));
    let roll = |state: &RoomState| {
        let row = |(present, handle): (Present, Option<Arc<Handle>>)| {
            (present.user.as_str().to_owned(), present.sessions, present.since.0, handle.is_some())
        };
        state.roll().into_iter().map(row).collect::<Vec<_>>()
    };
    assert_eq!(roll(&state), [("ann".into(), 2, 1, true), ("bob".into(), 1, 2, true)]);
    // Her time counts on with the session that stays.
    assert!(!state.remove(&second).unwrap().last);
    assert!(state.remove(&second).is_none());
    assert_eq!(roll(&state)[0], ("ann".into(), 1, 1, true));

    // She leaves and is back before anybody was told; that she left then is not heeded any more.
    let (left, left_at) = (state.remove(&first).unwrap(), shared.clock.now());
    assert!(left.last);
    state.linger(&ann.id, left, left_at, Claims::default());
    assert_eq!((state.sessions(), state.users()), (1, 2));
    assert_eq!(roll(&state), [("bob".into(), 1, 2, true), ("ann".into(), 0, 1, false)]);
    assert!(!state.insert(&first, UnixMillis(9), false), "she was there");
    assert_eq!(state.lingered(&ann.id, left_at), None);
    assert_eq!(roll(&state)[0], ("ann".into(), 1, 1, true));

    let left = state.remove(&first).unwrap();
    let again = left_at + std::time::Duration::from_millis(1);
    state.linger(&ann.id, left, again, Claims::default());
    assert_eq!(state.lingered(&ann.id, left_at), None, "an earlier leave");
    assert_eq!(state.lingered(&ann.id, again), Some(Gone { claims: Claims::default(), untold: false }));
    assert_eq!(state.users(), 1);
    assert!(state.insert(&first, UnixMillis(10), false), "now she comes anew");
}

#[tokio::test]
async fn topics_are_listed_by_name_and_forgotten_with_their_last_member() {
    let (topics, shared) = (Topics::new(), shared());
    let ann = Arc::new(User::new(user("ann")));
    let member = session(&ann, &shared);
    let names: Vec<_> = (0..50).map(|n| format!("a.{n:02}")).chain(["b".into(), "a".into()]).collect();
    for name in &names {
        topics.get_or_insert(&topic(name), || false).state().insert(&member, UnixMillis(0), false);
    }
    let page = |prefix: &str, after: Option<&str>, max| {
        let rooms = topics.page(prefix, after.map(topic).as_ref(), max);
        rooms.iter().map(|room| room.name.as_str().to_owned()).collect::<Vec<_>>()
    };
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(page("", None, 100), sorted);
    assert_eq!(page("a.", None, 3), ["a.00", "a.01", "a.02"]);
    assert_eq!(page("a.", Some("a.01"), 2), ["a.02", "a.03"]);
    assert_eq!(page("a.", Some("a"), 1), ["a.00"]);
    assert_eq!(page("b", Some("b"), 1), [""; 0]);
    assert_eq!(page("c", None, 1), [""; 0]);

    let room = topics.get(&topic("b")).unwrap();
    topics.forget_if_empty(&room);
    assert_eq!(topics.len(), 52, "somebody is in it");
    room.state().remove(&member).unwrap();
    topics.forget_if_empty(&room);
    topics.forget_if_empty(&room);
    assert_eq!((topics.len(), room.state().is_gone()), (51, true));
    // Whoever found it before finds another one when he looks again, and that one is not taken out with the first.
    let other = topics.get_or_insert(&topic("b"), || false);
    topics.forget_if_empty(&room);
    assert!(Arc::ptr_eq(&other, &topics.get(&topic("b")).unwrap()));
}

#[tokio::test]
async fn the_sessions_of_a_topic_come_in_pages_by_user_and_id() {
    let (topics, shared) = (Topics::new(), shared());
    let room = topics.get_or_insert(&topic("t"), || false);
    let users: Vec<_> = (0..7).map(|n| Arc::new(User::new(user(&format!("user-{n}"))))).collect();
    let mut members: Vec<_> = (0..1100).map(|n| session(&users[n % 7], &shared)).collect();
    for member in &members {
        room.state().insert(member, UnixMillis(0), false);
    }
    members.sort_by_key(|member| (member.user.id.clone(), member.id));
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = room.sessions(after.as_ref(), 300);
        let Some(last) = page.last() else { break };
        after = Some((last.user.id.clone(), last.id));
        seen.extend(page.iter().map(|member| member.id));
        // It goes on from there, whoever has left meanwhile.
        room.state().remove(last).unwrap();
    }
    assert_eq!(seen, members.iter().map(|member| member.id).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_is_published_reaches_every_member_once_and_in_order() {
    let world = World::new(Bounds::default());
    let mut members = Vec::new();
    for n in 0..70 {
        members.push(world.attach(&user(&format!("user-{}", n % 20)), &device(&format!("d{n}"))).await);
    }
    let mut other = world.attach(&user("other"), &device("d")).await;
    let handles: Vec<_> = members.iter().map(|member| Arc::clone(&member.handle)).collect();
    let changes = world.hub.subscribe(&topic("t"), &handles).await;
    assert_eq!(changes, Changes { sessions: 70, changed: 70, refused: 0, devices: 0 });
    let (t, all): (_, Vec<_>) = (topic("t"), (0..30).map(|n| notification(n * 10)).collect());
    let ids: Vec<_> = all.iter().map(|one| one.id.as_str().to_owned()).collect();
    let calls = all.into_iter().map(|one| world.hub.publish(&t, one, false));
    for sent in futures_util::future::join_all(calls).await {
        assert_eq!(sent.unwrap().sessions, 70);
    }
    for member in &mut members {
        member.read();
        assert_eq!(member.ids, ids);
    }
    other.read();
    assert_eq!(other.ids, [""; 0]);
    // A session that ends takes its places along.
    let last = members.pop().unwrap();
    last.detach();
    assert_eq!(world.hub.publish(&topic("t"), notification(1), false).await.unwrap().sessions, 69);
    for member in members {
        member.detach();
    }
    assert_eq!(world.hub.0.topics.len(), 0);
    let sent = world.hub.publish(&topic("t"), notification(1), false).await.unwrap();
    assert_eq!((sent.sessions, sent.outcome), (0, Outcome::Dropped));
}

#[tokio::test]
async fn nothing_is_subscribed_behind_the_end_of_a_session() {
    let world = World::new(Bounds::default());
    let ann = world.attach(&user("ann"), &device("d")).await;
    let handle = Arc::clone(&ann.handle);
    world.hub.subscribe(&topic("t"), &[Arc::clone(&handle)]).await;
    ann.detach();
    assert_eq!(world.hub.subscribe(&topic("t"), &[handle]).await, Changes::default());
    assert_eq!(world.hub.0.topics.len(), 0);
}

#[tokio::test]
async fn what_a_session_wants_stored_waits_in_order_and_within_bounds() {
    use crate::limits::{CLIENT_SENDS_BYTES_MAX, CLIENT_SENDS_MAX};
    let world = World::new(Bounds::default());
    let ann = world.attach(&user("ann"), &device("d")).await;
    let mut core = ann.handle.core();
    assert_eq!(
        core.queue(Errand::Send(user("bob"), notification(1), Some("0".into()))),
        Some(true),
        "nobody sends yet"
    );
    for n in 1..CLIENT_SENDS_MAX {
        assert_eq!(core.queue(Errand::Send(user("bob"), notification(1), Some(n.to_string()))), Some(false));
    }
    assert_eq!(core.queue(Errand::Send(user("bob"), notification(1), None)), None);
    for n in 0..CLIENT_SENDS_MAX {
        assert_eq!(core.next_errand().unwrap().reply_to(), Some(&*n.to_string()));
    }
    // Emptied, but whoever sends is still at it.
    assert_eq!(core.queue(Errand::Send(user("bob"), notification(CLIENT_SENDS_BYTES_MAX), None)), Some(false), "alone");
    assert_eq!(core.queue(Errand::Send(user("bob"), notification(1), None)), None);
    assert!(core.next_errand().is_some());
    assert!(core.next_errand().is_none());
    assert!(core.aside.is_none(), "nothing is kept for it");
    assert_eq!(core.queue(Errand::Send(user("bob"), notification(1), None)), Some(true));
}

#[test]
fn a_membership_is_small_on_both_sides() {
    assert_eq!(topics::MEMBER_BYTES, 24);
    // Beside the claims that are kept for others' sake.
    let aside = size_of::<handle::Aside>();
    assert!(aside <= 48, "{aside} bytes for a session with topics or claims");
}

/// What this process has in memory.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}

/// In a process of its own, where nothing else comes and goes.
#[tokio::test]
async fn of_100_000_members_each_costs_little_and_is_reached_while_others_have_their_turn() {
    const MEMBERS: usize = 100_000;
    const ALONE: &str = "PUSHGATE_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let name = std::thread::current().name().unwrap().to_owned();
        let program = std::env::current_exe().unwrap();
        let done = std::process::Command::new(program).args(["--exact", &name, "--nocapture"]).env(ALONE, "1").output();
        let done = done.unwrap();
        let said = [done.stdout, done.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(done.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let world = World::new(Bounds::default());
    let shared = Arc::clone(&world.hub.0.shared);
    let users: Vec<_> = (0..MEMBERS / 100).map(|n| Arc::new(User::new(user(&format!("user-{n}"))))).collect();
    let members: Vec<_> = (0..MEMBERS).map(|n| session(&users[n % users.len()], &shared)).collect();
    // What the first to do it brings into memory, its code above all, is not a member's.
    let first = [session(&users[0], &shared)];
    world.hub.subscribe(&topic("first"), &first).await;
    let before = resident_bytes();
    let changes = world.hub.subscribe(&topic("t"), &members).await;
    let grown = resident_bytes().saturating_sub(before);
    assert_eq!(changes.changed as usize, MEMBERS);
    let each = grown / MEMBERS;
    assert!(each <= 160, "{each} bytes a member, both sides together");
    println!("{each} bytes a member");

    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let turns = tokio::spawn({
        let done = Arc::clone(&done);
        async move {
            let mut turns = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                turns += 1;
                tokio::task::yield_now().await;
            }
            turns
        }
    });
    let sent = world.hub.publish(&topic("t"), notification(100), false).await.unwrap();
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(sent.sessions as usize, MEMBERS);
    let turns = turns.await.unwrap();
    assert!(turns >= MEMBERS / crate::limits::FANOUT_SLICE_SESSIONS, "{turns} turns in between");
    for member in members.iter().chain(&first) {
        world.hub.leave_all(member);
    }
    assert_eq!(world.hub.0.topics.len(), 0);
}

/// A lane that nobody runs: everything waits in it.
#[tokio::test]
async fn comings_and_goings_that_wait_are_bounded_and_no_going_is_told_without_its_coming() {
    let world = World::new(Bounds::default());
    let (hub, shared) = (&world.hub, Arc::clone(&world.hub.0.shared));
    let room = Topics::new().get_or_insert(&topic("t"), || true);
    assert!(room.lane.call(|| {}), "it rested, and is not run");
    let listener = session(&Arc::new(User::new(user("listener"))), &shared);
    room.state().insert(&listener, UnixMillis(0), true);
    let value = serde_json::json!({ "about": "x".repeat(4000) });
    let claims = Claims::of(value.as_object().unwrap(), &["about".to_owned()]);
    // Each comes and goes, over and over, more than anybody could be told.
    let (mut told, mut untold) = (0, 0);
    for n in 0..3000 {
        let who = user(&format!("user-{}", n % 900));
        let mut state = room.state();
        if hub.tell_of(true, &room, &state, &who, &claims, None) {
            told += 1;
            hub.tell_of(false, &room, &state, &who, &claims, None);
        } else {
            untold += 1;
        }
        state.set_hears(&listener, true);
    }
    assert!(told > 100 && untold > 2000, "{told} told, {untold} not");
    let waits = room.lane.presence_bytes();
    let most = limits::PRESENCE_QUEUE_BYTES_MAX + 2 * 4300;
    assert!((limits::PRESENCE_QUEUE_BYTES_MAX..=most).contains(&waits), "{waits} bytes wait");
    // Who was told of is told of when he goes, whatever waits.
    assert!(hub.tell_of(false, &room, &room.state(), &user("known"), &claims, None));
    assert!(room.lane.presence_bytes() > waits);
    while room.lane.takes_calls() {
        room.lane.call(|| {});
    }
    room.lane.run(&*room).await;
    assert_eq!(room.lane.presence_bytes(), 0);
    assert!(room.lane.takes_calls() && room.lane.takes_presence(), "there is room again");
}
