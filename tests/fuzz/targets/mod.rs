//! What is fuzzed, and what must hold of it.
//!
//! A target panics where something does not hold. The number it returns stands for the kind of outcome: equal where there
//! is nothing new to see.

mod client;
mod compression;
mod config;
mod frames;
mod handshake;
mod proxy;
mod store;

use std::hash::{DefaultHasher, Hash, Hasher};

/// Something that takes bytes from strangers.
pub struct Target {
    /// Its name, and its folder in `corpus/`.
    pub name: &'static str,
    /// What its inputs are made of, to be thrown in.
    pub words: &'static [&'static [u8]],
    /// Runs it.
    pub run: fn(&[u8]) -> u64,
}

/// All of them.
pub const ALL: [Target; 10] = [
    Target { name: "frames", words: frames::WORDS, run: frames::run },
    Target { name: "inflate", words: compression::WORDS, run: compression::inflate },
    Target { name: "deflate", words: client::WORDS, run: compression::deflate },
    Target { name: "client", words: client::WORDS, run: client::run },
    Target { name: "offers", words: handshake::WORDS, run: handshake::offers },
    Target { name: "handshake", words: handshake::WORDS, run: handshake::run },
    Target { name: "keys", words: store::WORDS, run: store::keys },
    Target { name: "records", words: store::WORDS, run: store::records },
    Target { name: "proxy", words: proxy::WORDS, run: proxy::run },
    Target { name: "config", words: config::WORDS, run: config::run },
];

/// The number of a kind of outcome.
pub fn kind(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// The magnitude of a length: a kind of outcome does not depend on every byte.
pub fn size(length: usize) -> u32 {
    usize::BITS - length.leading_zeros()
}
