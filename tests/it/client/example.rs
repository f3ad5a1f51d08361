//! The example runs as its first lines say.

use std::process::Stdio;

use serde_json::json;

use crate::support::{Gateway, Token, until};

#[tokio::test(flavor = "multi_thread")]
async fn the_example_connects_asks_prints_and_confirms() {
    let gateway = Gateway::start().await;
    gateway.rpc().await.send("alice", json!({ "hello": "world" })).await;
    let url = format!("ws://{}/ws", gateway.http);
    // Built already where all tests are; built here where only this one is.
    // Gateways that start side by side in one process may leave it the mask of their sockets, which the compiler's files
    // must not have.
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", "umask 022; exec \"$@\"", "sh", env!("CARGO"), "run", "--quiet", "--locked"]);
    command.args(["--example", "client", "--", &url, &Token::of("alice").sign(), "1"]);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for line in
        ["session 1: ", "notification: {\"hello\":\"world\"}", "echo_response: {\"are you\":\"there\"}", "closed"]
    {
        assert!(said.lines().any(|one| one.starts_with(line)), "{line} is not in {said}");
    }
    until("what waits", 0, || gateway.pending()).await;
}
