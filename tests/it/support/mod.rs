//! What the tests share: a gateway, tokens, and clients of every kind.

pub mod child;
pub mod client;
pub mod gateway;
pub mod http;
#[path = "../../support/inflate.rs"]
pub mod inflate;
pub mod raw;
pub mod rpc;
pub mod tls;
pub mod token;

use std::{fmt::Debug, future::Future, time::Duration};

pub use client::Client;
pub use gateway::Gateway;
pub use http::Http;
pub use raw::Raw;
pub use rpc::Rpc;
pub use token::Token;

/// How long anything may take that is expected to happen. Only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for what is expected to happen.
pub async fn soon<T>(what: &str, happens: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, happens).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

/// Asks again and again until the answer is the expected one. For what has no event of its own.
pub async fn until<T, F>(what: &str, expected: T, mut ask: impl FnMut() -> F) -> T
where
    T: PartialEq + Debug,
    F: Future<Output = T>,
{
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let answer = ask().await;
        if answer == expected {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what}: {answer:?}, and not {expected:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
