//! The example runs as its first lines say.

use std::process::Stdio;

use serde_json::json;
use tokio::process::Command;

use super::support::Played;
use crate::support::{Gateway, Token, until};

/// The example with these arguments.
fn example(args: &[&str]) -> Command {
    // Built already where all tests are; built here where only this one is.
    // Gateways that start side by side in one process may leave it the mask of their sockets, which the compiler's files
    // must not have.
    let mut command = Command::new("sh");
    command.args(["-c", "umask 022; exec \"$@\"", "sh", env!("CARGO"), "run", "--quiet", "--locked"]);
    command.args(["--example", "client", "--"]).args(args);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null()).kill_on_drop(true);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_connects_asks_prints_and_confirms() {
    let gateway = Gateway::start().await;
    gateway.rpc().await.send("alice", json!({ "hello": "world" })).await;
    let url = format!("ws://{}/ws", gateway.http);
    let output = example(&[&url, &Token::of("alice").sign(), "1"]).output().await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for line in
        ["session 1: ", "notification: {\"hello\":\"world\"}", "echo_response: {\"are you\":\"there\"}", "closed"]
    {
        assert!(said.lines().any(|one| one.starts_with(line)), "{line} is not in {said}");
    }
    until("what waits", 0, || gateway.pending()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_says_so_where_it_got_less_than_it_wanted() {
    // Built here, so that it is there in time.
    assert!(!example(&["nothing", "token"]).output().await.unwrap().status.success());
    // Which of the two ends it hears of first is chance.
    for _ in 0..5 {
        let played = Played::new().await;
        let running = tokio::spawn({
            let mut example = example(&[&played.url(), "token", "1"]);
            async move { example.output().await }
        });
        let mut peer = played.session().await;
        let asked = peer.hear().await;
        peer.say(json!({ "type": "echo_response", "replyTo": asked["id"], "data": 1 })).await;
        peer.close(1000).await;
        let output = running.await.unwrap().unwrap();
        assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}
