//! The audit: each call that takes something away is one line, whatever becomes of it.

use std::{collections::HashMap, time::Duration};

use pushgate::api::proto::RevokeTokensRequest;
use rustix::process::Signal;
use serde_json::Value;
use tonic::Request;

use crate::support::{
    Client, Rpc, Token,
    child::{Daemon, config},
    client::request,
    gateway::ADMIN,
    soon,
};

const GIVEN_UP: &str = "given up by its caller; may have been done";

/// What the lines of the audit say, by their subject.
fn take(lines: impl IntoIterator<Item = Value>, said: &mut HashMap<String, Vec<String>>) {
    for line in lines.into_iter().filter(|line| line["target"] == "pushgate::audit") {
        let field = |name: &str| line[name].as_str().unwrap().to_owned();
        assert_eq!((field("action"), field("caller")), ("revoke".to_owned(), "admin".to_owned()));
        said.entry(field("subject")).or_default().push(field("result"));
    }
}

/// Deadlines that end in the middle, and calls that are reset: what is done all the same is a line, and once.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_its_caller_gives_up_is_one_line_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(&config(folder.path(), "")).await;
    let rpc = Rpc::over_tcp(daemon.address("grpc"), Some(ADMIN)).await;
    let (mut said, mut calls) = (HashMap::new(), 0_u32);
    let given_up =
        |said: &HashMap<String, Vec<String>>| said.values().flatten().filter(|text| *text == GIVEN_UP).count();
    while calls < 100 || given_up(&said) < 3 {
        assert!(calls < 5000, "none is given up");
        let expires_at = Some((std::time::SystemTime::now() + Duration::from_secs(3600)).into());
        let revoke = RevokeTokensRequest { jti: format!("token-{calls}"), expires_at, ..Default::default() };
        let wait = Duration::from_micros(u64::from(calls % 100 + 1) * 100);
        let mut client = rpc.client.clone();
        if calls % 2 == 0 {
            let mut request = Request::new(revoke);
            request.set_timeout(wait);
            let _ = soon("an answer", client.revoke_tokens(request)).await;
        } else {
            let _ = tokio::time::timeout(wait, client.revoke_tokens(revoke)).await;
        }
        calls += 1;
        take(daemon.logged_by_now(), &mut said);
    }
    let mut void = Vec::new();
    for n in 0..100 {
        let token = Token::of("ann").with("jti", format!("token-{n}")).sign();
        let url = format!("ws://{}/ws?token={token}", daemon.address("http"));
        let (mut client, _) = Client::open(request(&url, &[])).await.unwrap();
        if client.next().await["code"] == "token_revoked" {
            void.push(format!("jti token-{n}"));
        }
    }
    assert!(!void.is_empty());
    daemon.signal(Signal::TERM);
    let mut rest = Vec::new();
    while let Some(line) = daemon.line().await {
        rest.push(line);
    }
    take(rest, &mut said);
    for (subject, results) in &said {
        assert_eq!(results.len(), 1, "{subject}: {results:?}");
        assert!([GIVEN_UP, "0 closed"].contains(&results[0].as_str()), "{subject}: {results:?}");
    }
    for subject in &void {
        assert!(said.contains_key(subject), "{subject} is void, and nobody is said to have done that");
    }
    assert!(daemon.ended().await.success());
}
