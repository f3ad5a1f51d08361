//! What single functions cost: the decoder, the encoder, the frame reader, the outbox, the store's commits, tokens.
//!
//! `cargo bench --bench functions [-- FILTER]`, about two minutes; `-- decode` or `-- store/page` runs a part. It
//! decides nothing: criterion compares with the run before and says so. `cargo test --bench functions` runs each once.
//! Where a figure is mostly the kernel's, a `floor/` beside it does the same system call and nothing else.

mod outbox;
mod protocol;
mod store;
mod token;

use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use pushgate::{
    clock::Clock,
    types::{Notification, NotificationId, Payload, TypeName, UserId},
};

/// The daemon's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A JSON object of exactly `bytes` bytes, with the quotes and brackets that objects have.
fn json(bytes: usize) -> String {
    let mut text = String::from("{\"title\":\"You have mail\",\"unread\":[1,2,3]");
    while text.len() + 40 < bytes {
        text.push_str(",\"from\":\"somebody\"");
    }
    let start = ",\"body\":\"";
    let fill = bytes - text.len() - start.len() - 2;
    text + start + &"x".repeat(fill) + "\"}"
}

/// A notification as one accepted now, to be kept for a day.
fn notification(payload: Payload) -> Notification {
    let now = Clock::system().unix_millis();
    Notification {
        id: NotificationId::generate(),
        type_name: TypeName::NOTIFICATION,
        payload,
        from_user: None,
        collapse_key: None,
        not_for: [].into(),
        accepted_at: now,
        expires_at: Some(now.saturating_add(Duration::from_secs(24 * 3600))),
    }
}

fn json_notification(bytes: usize) -> Notification {
    notification(Payload::Json(Bytes::from(json(bytes))))
}

fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Short runs: there are many, and what is looked for is larger than what a longer run would resolve.
fn settings() -> Criterion {
    Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_millis(1500))
        .nresamples(20_000)
}

criterion_group! {
    name = benches;
    config = settings();
    targets = protocol::decode, protocol::encode, protocol::read, outbox::outbox, token::token_verification, store::floor,
        store::append, store::page
}
criterion_main!(benches);
