//! The ring and its audience: order, loss, and who gets a client's message.

use super::*;
use crate::{
    limits,
    types::{Claims, Device, DrainProgress, Payload, SessionId, TypeName, UserId},
};

fn online(events: &Events, name: &str) {
    events.emit(EventBody::UserOnline { user: UserId::parse(name).unwrap() });
}

fn message(type_name: &str, bytes: usize) -> Forwarded {
    Forwarded {
        session: SessionId::generate(),
        user: UserId::parse("alice").unwrap(),
        device: Device::UNNAMED,
        type_name: TypeName::parse(type_name).unwrap(),
        id: Some("1".into()),
        payload: Payload::Json(vec![b'1'; bytes].into()),
        claims: Claims::default(),
        reply_by: None,
    }
}

/// Whether somebody takes a message, of which nobody waits for the answer.
fn offer(events: &Events, message: Forwarded) -> bool {
    events.offer(message).is_some()
}

fn in_group(name: &str) -> Interest {
    Interest { group: Some(name.into()), ..Interest::default() }
}

fn consumer(events: &Arc<Events>) -> Reader {
    events.consume(Interest::default(), Start::Now)
}

/// What a consumer has seen and was told that it lost: the sequences, and how many.
#[derive(Debug, Default, PartialEq, Eq)]
struct Account {
    seen: Vec<u64>,
    lost: u64,
}

/// Reads all that is there. Every sequence is in order, and what was lost ends where it is said to.
fn read_all(reader: &mut Reader) -> Account {
    let mut account = Account::default();
    while let Some(read) = reader.try_read() {
        match read {
            Read::Events(events) => account.seen.extend(events.iter().map(|event| event.sequence)),
            Read::Lost { count, last } => {
                account.lost += count;
                assert!(account.seen.last().is_none_or(|seen| *seen + count <= last));
            }
        }
    }
    assert!(account.seen.is_sorted());
    account
}

fn seen(reader: &mut Reader) -> Vec<u64> {
    let account = read_all(reader);
    assert_eq!(account.lost, 0);
    account.seen
}

#[tokio::test]
async fn a_consumer_gets_what_comes_after_it_in_order() {
    let events = Events::new(16, Clock::system());
    online(&events, "before");
    let mut reader = consumer(&events);
    assert!(reader.try_read().is_none());
    online(&events, "a");
    online(&events, "b");
    let Read::Events(read) = reader.read().await else { panic!() };
    assert_eq!(read.iter().map(|e| e.sequence).collect::<Vec<_>>(), [2, 3]);
}

#[tokio::test]
async fn a_waiting_consumer_is_woken_by_what_it_wants() {
    let events = Events::new(16, Clock::system());
    let only = Interest { user: Some(UserId::parse("b").unwrap()), ..Interest::default() };
    let mut reader = events.consume(only, Start::Now);
    let waiting = tokio::spawn(async move { reader.read().await });
    tokio::task::yield_now().await;
    online(&events, "a");
    online(&events, "b");
    let Read::Events(read) = waiting.await.unwrap() else { panic!() };
    assert_eq!(read.iter().map(|e| e.sequence).collect::<Vec<_>>(), [2]);
}

#[tokio::test]
async fn a_long_stretch_of_what_others_want_keeps_nobody_from_his_turn() {
    let events = Events::new(100_000, Clock::system());
    let only = Interest { user: Some(UserId::parse("b").unwrap()), ..Interest::default() };
    let mut reader = events.consume(only, Start::Now);
    (0..50_000).for_each(|_| online(&events, "a"));
    online(&events, "b");
    let mut reading = tokio_test_poll(async move { reader.read().await });
    let mut turns = 0;
    let read = loop {
        match reading() {
            Some(read) => break read,
            None => turns += 1,
        }
    };
    assert!(matches!(read, Read::Events(read) if read[0].sequence == 50_001));
    assert!(turns >= 50_000 / (LOOKS_MAX * ring::READ_MAX), "{turns}");
}

/// Polls a future by hand.
fn tokio_test_poll<T>(future: impl Future<Output = T>) -> impl FnMut() -> Option<T> {
    let mut future = Box::pin(future);
    move || {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        }
    }
}

#[tokio::test]
async fn a_consumer_that_falls_behind_is_told_how_many_it_lost() {
    let events = Events::new(4, Clock::system());
    let mut reader = consumer(&events);
    for _ in 0..10 {
        online(&events, "a");
    }
    let Read::Lost { count, last } = reader.read().await else { panic!() };
    assert_eq!((count, last), (6, 6));
    let Read::Events(read) = reader.read().await else { panic!() };
    assert_eq!(read.iter().map(|e| e.sequence).collect::<Vec<_>>(), [7, 8, 9, 10]);
}

#[test]
fn a_consumer_goes_on_where_it_was_as_far_as_that_is_there() {
    let events = Events::new(4, Clock::system());
    for _ in 0..6 {
        online(&events, "a");
    }
    let from = |sequence| events.consume(Interest::default(), Start::After(sequence));
    assert_eq!(seen(&mut from(6)), [0; 0]);
    assert_eq!(seen(&mut from(4)), [5, 6]);
    assert_eq!(seen(&mut from(2)), [3, 4, 5, 6]);
    assert_eq!(read_all(&mut from(1)), Account { seen: vec![3, 4, 5, 6], lost: 1 });
    assert_eq!(read_all(&mut from(0)), Account { seen: vec![3, 4, 5, 6], lost: 2 });
    let mut beginning = from(0);
    assert_eq!(beginning.skip_lost(), (2, 2));
    assert_eq!(beginning.skip_lost(), (0, 2));
    assert_eq!((beginning.place(), seen(&mut beginning)), (2, vec![3, 4, 5, 6]));
    assert_eq!(seen(&mut from(u64::MAX)), [0; 0], "there is nothing beyond the present");
}

#[test]
fn a_message_that_nobody_wants_is_no_event() {
    let events = Events::new(16, Clock::system());
    assert!(!offer(&events, message("order", 1)));
    let types = |bits, message_types: &[&str]| Interest {
        types: bits,
        message_types: message_types.iter().map(|name| TypeName::parse(name).unwrap()).collect(),
        ..Interest::default()
    };
    let sessions = events.consume(types(0b11, &[]), Start::Now);
    let other_type = events.consume(types(Interest::ALL_TYPES, &["other", "another"]), Start::Now);
    let bob = Interest { user: Some(UserId::parse("bob").unwrap()), ..Interest::default() };
    let other_user = events.consume(bob, Start::Now);
    assert!(!offer(&events, message("order", 1)));
    assert_eq!(events.count(), 0);
    let mut wanting = events.consume(types(Interest::ALL_TYPES, &["order"]), Start::Now);
    assert!(offer(&events, message("order", 1)));
    assert!(offer(&events, message("other", 1)));
    assert_eq!(seen(&mut wanting), [1]);
    drop(wanting);
    assert!(!offer(&events, message("order", 1)), "it goes with its consumer");
    drop((sessions, other_type, other_user));
}

#[test]
fn each_message_goes_to_one_of_a_group_and_to_all_who_are_of_none() {
    let events = Events::new(64, Clock::system());
    let mut alone = consumer(&events);
    let mut one = events.consume(in_group("a"), Start::Now);
    let mut two = events.consume(in_group("a"), Start::Now);
    let mut of_another = events.consume(in_group("b"), Start::Now);
    for n in 0..6 {
        assert!(offer(&events, message("order", 1)));
        if n == 2 {
            online(&events, "alice");
        }
    }
    let all: Vec<_> = (1..=7).collect();
    assert_eq!(seen(&mut alone), all);
    assert_eq!(seen(&mut of_another), all);
    // In turns, and each hears of alice, in the order of all.
    assert_eq!(seen(&mut one), [1, 3, 4, 6]);
    assert_eq!(seen(&mut two), [2, 4, 5, 7]);
}

#[test]
fn who_is_stalled_is_left_with_what_it_has() {
    let events = Events::new(1024, Clock::system());
    let mut stalled = events.consume(in_group("a"), Start::Now);
    let mut live = events.consume(in_group("a"), Start::Now);
    let mut taken = 0;
    for _ in 0..100 {
        assert!(offer(&events, message("order", 1)));
        taken += seen(&mut live).len();
    }
    assert_eq!((taken, seen(&mut stalled).len()), (99, 1));
}

#[test]
fn who_reads_and_never_answers_is_given_no_more_than_others_have_open() {
    let events = Events::new(1024, Clock::system());
    let mut hangs = events.consume(in_group("a"), Start::Now);
    let mut answers = events.consume(in_group("a"), Start::Now);
    let (mut never, mut given) = (Vec::new(), 0);
    for _ in 0..100 {
        let open = events.offer(message("order", 1)).unwrap();
        match seen(&mut hangs).is_empty() {
            true => given += seen(&mut answers).len(),
            false => never.push(open),
        }
    }
    assert_eq!((never.len(), given), (1, 99));
    // Its requests run into their timeouts, and what awaits no reply is nothing that it owes.
    never.clear();
    let unanswerable = || Forwarded { id: None, ..message("order", 1) };
    let open: Vec<_> = (0..6).map(|_| events.offer(unanswerable()).unwrap()).collect();
    assert_eq!((seen(&mut hangs).len(), seen(&mut answers).len()), (3, 3));
    drop(open);
}

#[test]
fn what_a_member_was_not_given_yet_goes_to_another_that_wants_it() {
    let events = Events::new(1024, Clock::system());
    let mut one = events.consume(in_group("a"), Start::Now);
    let two = events.consume(in_group("a"), Start::Now);
    let picky = Interest { message_types: vec![TypeName::parse("other").unwrap()], ..in_group("a") };
    let mut picky = events.consume(picky, Start::Now);
    let mut stranger = events.consume(in_group("b"), Start::Now);
    for _ in 0..6 {
        assert!(offer(&events, message("order", 1)));
    }
    let Some(Read::Events(first)) = one.try_read() else { panic!() };
    assert_eq!(first[0].sequence, 1);
    drop(two);
    assert_eq!(seen(&mut one), [2, 3, 4, 5, 6], "its own and the other's, in order");
    assert_eq!(seen(&mut stranger), [1, 2, 3, 4, 5, 6]);
    assert_eq!(seen(&mut picky), [0; 0]);
    assert!(offer(&events, message("order", 1)));
    drop((one, stranger));
    // Nobody who wants it is left in the group.
    assert_eq!(seen(&mut picky), [0; 0]);
}

#[tokio::test]
async fn an_heir_is_woken_by_what_it_inherits() {
    let events = Events::new(16, Clock::system());
    let one = events.consume(in_group("a"), Start::Now);
    assert!(offer(&events, message("order", 1)));
    let mut two = events.consume(in_group("a"), Start::Now);
    let waiting = tokio::spawn(async move { two.read().await });
    tokio::task::yield_now().await;
    drop(one);
    assert!(matches!(waiting.await.unwrap(), Read::Events(read) if read[0].sequence == 1));
}

#[test]
fn a_group_takes_so_much_and_says_what_it_did_not() {
    let events = Events::new(16, Clock::system());
    let mut alone = consumer(&events);
    let mut member = events.consume(in_group("a"), Start::Now);
    let max = limits::GROUP_QUEUE_MESSAGES_MAX as u64;
    for _ in 0..max + 5 {
        assert!(offer(&events, message("order", 1)), "who is of no group takes it");
    }
    let account = read_all(&mut member);
    assert_eq!((account.seen, account.lost), ((1..=max).collect(), 5));
    let account = read_all(&mut alone);
    assert_eq!((account.seen.len() as u64, account.lost), (16, max + 5 - 16));
    drop(alone);
    for n in 0..max + 5 {
        assert_eq!(offer(&events, message("order", 1)), n < max, "nobody takes more");
    }
    assert_eq!(events.count(), max + 5 + max, "what nobody takes is no event");
    assert_eq!(read_all(&mut member).seen.len() as u64, max);

    let large = limits::GROUP_QUEUE_BYTES_MAX;
    assert!(offer(&events, message("order", large + 1)), "an empty queue takes one of any size");
    assert!(!offer(&events, message("order", 1)));
    assert_eq!(read_all(&mut member).seen.len(), 1);
    assert!(offer(&events, message("order", large / 2)) && !offer(&events, message("order", large / 2)));
}

#[test]
fn large_messages_push_out_each_other_and_nothing_else() {
    let events = Events::new(1024, Clock::system());
    let mut reader = consumer(&events);
    let mut indifferent = events.consume(Interest { types: 0b1111, ..Interest::default() }, Start::Now);
    let large = limits::EVENT_MESSAGE_BYTES_MAX / 4;
    for _ in 0..10 {
        online(&events, "a");
        assert!(offer(&events, message("file", large)));
    }
    assert_eq!(seen(&mut indifferent), (0..10).map(|n| 2 * n + 1).collect::<Vec<_>>());
    let account = read_all(&mut reader);
    // With what else belongs to a message there is room for three.
    assert_eq!((account.lost, account.seen.len()), (7, 13));
    assert_eq!(account.seen[7..], [15, 16, 17, 18, 19, 20], "{account:?}");
    assert!(offer(&events, message("file", 5 * large)));
    assert_eq!(seen(&mut reader), [21], "one of any size stays");
    for _ in 0..2000 {
        online(&events, "a");
    }
    assert!(offer(&events, message("file", 2 * large)) && offer(&events, message("file", large)));
    let account = read_all(&mut reader);
    assert_eq!((account.seen.len() as u64 + account.lost, account.lost), (2002, 2002 - 1024), "room was given back");
}

/// Emitters on many threads, readers that keep up, read now and then, or not at all: each counts all of it.
#[test]
fn every_event_is_seen_or_told_as_lost_whoever_reads_how() {
    const EACH: u64 = 20_000;
    const EMITTERS: u64 = 4;
    let events = Events::new(1024, Clock::system());
    let mut stalled = consumer(&events);
    let in_a_group = events.consume(in_group("a"), Start::Now);
    let counts: Vec<u64> = std::thread::scope(|scope| {
        let readers: Vec<_> = [false, true]
            .map(|lazy| {
                let mut reader = consumer(&events);
                scope.spawn(move || {
                    let mut count = 0;
                    while count < EMITTERS * EACH {
                        match reader.try_read() {
                            Some(Read::Events(read)) => count += read.len() as u64,
                            Some(Read::Lost { count: lost, .. }) => count += lost,
                            None => std::thread::yield_now(),
                        }
                        if lazy {
                            (0..100).for_each(|_| std::thread::yield_now());
                        }
                    }
                    count
                })
            })
            .into();
        for emitter in 0..EMITTERS {
            let events = &events;
            scope.spawn(move || {
                for n in 0..EACH {
                    match (emitter + n) % 8 {
                        0 => assert!(offer(events, message("order", 10))),
                        _ => online(events, "a"),
                    }
                }
            });
        }
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    assert_eq!(counts, [EMITTERS * EACH; 2]);
    let account = read_all(&mut stalled);
    assert_eq!((account.seen.len() as u64, account.lost), (1024, EMITTERS * EACH - 1024));
    drop(in_a_group);
}

#[tokio::test]
async fn the_lag_is_that_of_the_slowest_who_still_reads() {
    let events = Events::new(4, Clock::system());
    online(&events, "before");
    assert_eq!(events.lag(), 0, "nobody reads");
    let (mut slow, mut fast) = (consumer(&events), consumer(&events));
    (0..3).for_each(|_| online(&events, "a"));
    fast.try_read();
    assert_eq!(events.lag(), 3);
    (0..7).for_each(|_| online(&events, "a"));
    assert_eq!(events.lag(), 10, "more than there is: some are lost");
    assert!(matches!(slow.try_read(), Some(Read::Lost { count: 6, .. })));
    assert_eq!(events.lag(), 7, "now of the other one");
    fast.try_read();
    slow.try_read();
    assert_eq!(events.lag(), 4);
    drop(fast);
    assert_eq!(events.lag(), 0);
}

/// The ring turns over many times with nothing in it for a consumer who reads whenever he is woken: he lost nothing.
#[tokio::test]
async fn who_waits_for_what_is_rare_loses_nothing_by_it() {
    let events = Events::new(64, Clock::system());
    let draining = EventBody::NAMES.iter().position(|name| *name == "draining").unwrap();
    let mut reader = events.consume(Interest { types: 1 << draining, ..Interest::default() }, Start::Now);
    let waiting = tokio::spawn(async move { reader.read().await });
    for _ in 0..1000 {
        online(&events, "a");
        tokio::task::yield_now().await;
    }
    assert!(events.lag() <= 64 / FAR_BEHIND + 1, "{} behind", events.lag());
    events.emit(EventBody::Draining(DrainProgress::default()));
    let Read::Events(read) = waiting.await.unwrap() else { panic!("it lost something") };
    assert_eq!(read.iter().map(|event| event.sequence).collect::<Vec<_>>(), [1001]);
}
