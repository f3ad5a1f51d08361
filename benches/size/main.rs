//! How large a store may be: fills one through the daemon, and measures what it then takes to hold it and to start on it.
//!
//! `cargo bench --bench size [-- NOTIFICATIONS USERS]`, 1,000,000 of 300 bytes for 100,000 users where nothing is said.
//! It prints what BENCHMARKS.md shows, and decides nothing. Needs about 4 GiB of disk in the temporary folder.

#[path = "../support/daemon.rs"]
mod daemon;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use daemon::{Daemon, Error, SECRET};

use futures_util::{SinkExt as _, StreamExt as _};
use pushgate::api::proto::{GetStatusRequest, Notification, SendToUserRequest, Wait, notification::Payload};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;

const PAYLOAD_BYTES: usize = 300;
const CALLERS: usize = 128;
const REPLAYED_USERS: u64 = 1000;

fn request(user: u64, wait: Wait) -> SendToUserRequest {
    let payload = format!("\"{}\"", "x".repeat(PAYLOAD_BYTES - 2));
    let notification = Notification { payload: Some(Payload::Json(payload)), ..Notification::default() };
    SendToUserRequest {
        user_id: format!("user-{user}"),
        notification: Some(notification),
        wait: wait.into(),
        ..SendToUserRequest::default()
    }
}

async fn fill(daemon: &Daemon, notifications: u64, users: u64) -> Result<(), Error> {
    let next = Arc::new(AtomicU64::new(0));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..CALLERS {
        let (mut client, next) = (daemon.client().await?, Arc::clone(&next));
        callers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= notifications {
                    return Ok::<_, tonic::Status>(());
                }
                client.send_to_user(request(number % users, Wait::Stored)).await?;
            }
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    Ok(())
}

/// Connects as some users, one after the other, and takes what waits. Returns how many notifications came.
async fn replay(daemon: &Daemon, users: u64) -> Result<u64, Error> {
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    let mut came = 0;
    for user in 0..users {
        let claims = serde_json::json!({ "sub": format!("user-{user}") });
        let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key)?;
        let url = format!("ws://{}/ws?token={token}", daemon.http);
        let (mut socket, _) = tokio_tungstenite::connect_async(url).await?;
        let mut left = None;
        while left != Some(0) {
            let message = socket.next().await.ok_or("the session ended")??;
            if let Message::Text(text) = message {
                let message: Value = serde_json::from_str(&text)?;
                match message["type"].as_str() {
                    Some("auth_success") => left = message["pending"].as_u64(),
                    Some("notification") => {
                        left = left.map(|left| left - 1);
                        came += 1;
                    }
                    _ => {}
                }
            }
        }
        socket.flush().await?;
    }
    Ok(came)
}

async fn resident(daemon: &Daemon) -> Result<u64, Error> {
    let status = daemon.client().await?.get_status(GetStatusRequest {}).await?.into_inner();
    Ok(status.process.unwrap_or_default().rss_bytes / (1024 * 1024))
}

async fn measure(engine: &str, notifications: u64, users: u64) -> Result<(), Error> {
    let folder = tempfile::TempDir::new()?;
    let daemon = Daemon::start(folder.path(), engine, "")?;
    let began = Instant::now();
    fill(&daemon, notifications, users).await?;
    let took = began.elapsed();
    let rate = notifications as f64 / took.as_secs_f64();
    println!(
        "| {engine}: filled by {CALLERS} callers, WAIT_STORED | {:.0} s, {rate:.0} a second |",
        took.as_secs_f64()
    );
    println!("| {engine}: resident when full | {} MiB |", resident(&daemon).await?);
    let status = daemon.client().await?.get_status(GetStatusRequest {}).await?.into_inner();
    let disk = status.store.unwrap_or_default().disk_bytes / (1024 * 1024);
    println!("| {engine}: pending, on disk | {}, {disk} MiB |", status.pending.unwrap_or_default().count);
    println!("| {engine}: clean stop | {:.2} s |", daemon.stop()?.as_secs_f64());

    let daemon = Daemon::start(folder.path(), engine, "")?;
    println!("| {engine}: ready after a clean stop | {:.2} s |", daemon.ready.as_secs_f64());
    println!("| {engine}: resident when started | {} MiB |", resident(&daemon).await?);
    let began = Instant::now();
    let came = replay(&daemon, REPLAYED_USERS).await?;
    let took = began.elapsed();
    println!(
        "| {engine}: {REPLAYED_USERS} users replayed one after the other | {came} notifications, {:.2} ms a user, {} MiB resident |",
        took.as_secs_f64() * 1000.0 / REPLAYED_USERS as f64,
        resident(&daemon).await?
    );
    // Killed with writes in flight.
    let mut callers = tokio::task::JoinSet::new();
    let sent = Arc::new(AtomicU64::new(0));
    for caller in 0..CALLERS as u64 {
        let (mut client, sent) = (daemon.client().await?, Arc::clone(&sent));
        callers.spawn(async move {
            for number in 0.. {
                if client.send_to_user(request((caller * 131 + number) % users, Wait::Stored)).await.is_err() {
                    return;
                }
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    while sent.load(Ordering::Relaxed) < 20_000 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    daemon.kill()?;
    while callers.join_next().await.is_some() {}
    let daemon = Daemon::start(folder.path(), engine, "")?;
    println!("| {engine}: ready after kill -9 | {:.2} s |", daemon.ready.as_secs_f64());
    println!("| {engine}: resident then | {} MiB |", resident(&daemon).await?);
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let (notifications, users) = match numbers[..] {
        [notifications, users, ..] => (notifications, users),
        _ => (1_000_000, 100_000),
    };
    println!(
        "{notifications} notifications of {PAYLOAD_BYTES} bytes for {users} users\n\n| what | figure |\n|---|---|"
    );
    for engine in ["sled", "redb"] {
        measure(engine, notifications, users).await?;
    }
    Ok(())
}
