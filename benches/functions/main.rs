//! What single functions cost: the decoder, the encoder, the frame reader, the outbox, the store's commits, tokens.
//!
//! `cargo bench --bench functions [-- FILTER]`, about two minutes; `-- decode` or `-- store/page` runs a part. It
//! decides nothing: criterion compares with the run before and says so. `cargo test --bench functions` runs each once.
//! Where a figure is mostly the kernel's, a `floor/` beside it does the same system call and nothing else.

#[path = "../support/made.rs"]
mod made;
mod outbox;
mod protocol;
mod store;
mod token;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

/// The daemon's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
