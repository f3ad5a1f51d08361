//! Every RPC asks for its scope: each of the service, with each scope there is. The table is held against the service's own
//! description, so that one that is new has to be in it. Of the paths over HTTP, `http.rs` has the same.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use futures_util::stream;
use prost::Message as _;
use pushgate::api::proto::{
    CloseUserSessionsRequest, DESCRIPTORS, DrainRequest, PurgePendingRequest, ReloadRequest, RevokeTokensRequest,
};
use tonic::{
    Code, Request,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::support::{
    Client, Gateway, Http, Rpc, Token,
    child::{Daemon, config},
    gateway::ADMIN,
    rpc::SCOPES,
    soon,
};

/// What each RPC takes, and its name in the audit: what closes, revokes, clears or forgets something is a line there.
const RPCS: [(&str, &str, Option<&str>); 24] = [
    ("SendToUser", "send", None),
    ("SendBatch", "send", None),
    ("Broadcast", "send", None),
    ("CloseUserSessions", "close", Some("close")),
    ("GetStatus", "read", None),
    ("ListSessions", "read", None),
    ("ListPending", "read", None),
    ("PurgePending", "admin", Some("purge")),
    ("ListDevices", "read", None),
    ("ForgetDevice", "admin", Some("forget device")),
    ("ForgetUser", "admin", Some("forget user")),
    ("StreamEvents", "events", None),
    ("Reload", "admin", Some("reload")),
    ("Backup", "admin", None),
    ("SendToSession", "send", None),
    ("ListUsers", "read", None),
    ("SetLogFilter", "admin", None),
    ("Publish", "send", None),
    ("Subscribe", "send", None),
    ("Unsubscribe", "send", None),
    ("ListTopics", "read", None),
    ("RevokeTokens", "admin", Some("revoke")),
    // Last: from then on nobody is let in, and then again.
    ("Drain", "admin", Some("drain")),
    ("Undrain", "admin", Some("undrain")),
];

/// Calls with an empty message, which is one of every request; the answer's code.
async fn call(channel: &Channel, name: &str, token: Option<&str>) -> Code {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let mut request = Request::new(stream::iter([()]));
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let path = format!("/pushgate.v1.Gateway/{name}").parse().unwrap();
    match soon("an answer", client.streaming(request, path, ProstCodec::<(), ()>::default())).await {
        Ok(_) => Code::Ok,
        Err(status) => status.code(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rpc_asks_for_its_scope() {
    let set = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let services = set.file.iter().flat_map(|file| &file.service);
    let there: BTreeSet<&str> = services.flat_map(|service| &service.method).map(|method| method.name()).collect();
    assert_eq!(there, RPCS.iter().map(|(name, ..)| *name).collect(), "an RPC that is not in the table, or none");

    let gateway = Gateway::start().await;
    let channel = Endpoint::from_shared(format!("http://{}", gateway.grpc)).unwrap().connect().await.unwrap();
    for (name, needed, _) in RPCS {
        for scope in SCOPES {
            let code = call(&channel, name, Some(&format!("{scope}-token"))).await;
            let open = scope == needed || scope == "admin";
            assert_eq!(code != Code::PermissionDenied, open, "{name} with {scope}: {code:?}");
            assert_ne!(code, Code::Unauthenticated, "{name} with {scope}");
        }
        for token in [None, Some("another-token")] {
            assert_eq!(call(&channel, name, token).await, Code::Unauthenticated, "{name} with {token:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_with_revocation_needs_the_scopes_of_both() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client("ann").await;
    let request = CloseUserSessionsRequest { user_id: "ann".into(), revoke_tokens: true, ..Default::default() };
    let mut closer = Rpc::over_tcp(gateway.grpc, Some("close-token")).await;
    let refused = closer.close(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("lacks the scope `admin`"), "{refused}");
    client.nothing_more().await;
    assert_eq!(gateway.rpc().await.close(request).await.unwrap(), 1);
    assert_eq!(client.closed().await.0, 1000);
}

/// The lines of the audit since the last time: action, caller and result.
async fn audited(daemon: &mut Daemon, admin: &mut Rpc) -> Vec<(String, String, String)> {
    let marker = CloseUserSessionsRequest { user_id: "marker".into(), ..Default::default() };
    admin.close(marker).await.unwrap();
    let mut found = Vec::new();
    loop {
        let line = daemon.logged("audit").await;
        if line["subject"] == "user marker" {
            return found;
        }
        let field = |name: &str| line[name].as_str().unwrap().to_owned();
        found.push((field("action"), field("caller"), field("result")));
    }
}

/// Has an RPC of the audit do what it is for; false where this does not know how.
async fn done(name: &str, admin: &mut Rpc, daemon: &Daemon) -> bool {
    match name {
        "CloseUserSessions" => {
            admin.close(CloseUserSessionsRequest { user_id: "ann".into(), ..Default::default() }).await.unwrap();
        }
        "PurgePending" => {
            let purge = PurgePendingRequest { user_id: "ann".into(), device: None, force: true };
            admin.purge(purge).await.unwrap();
        }
        "ForgetDevice" => {
            let token = Token::of("ann").sign();
            let url = format!("ws://{}/ws?device=phone&token={token}", daemon.address("http"));
            Client::connect(&url).await.close().await;
            admin.forget_device("ann", Some("phone")).await.unwrap();
        }
        "ForgetUser" => {
            admin.forget_user("ann").await;
        }
        "RevokeTokens" => {
            let expires_at = Some((SystemTime::now() + Duration::from_secs(3600)).into());
            admin.revoke(RevokeTokensRequest { jti: "one".into(), expires_at, ..Default::default() }).await.unwrap();
        }
        "Drain" => drop(admin.drain(DrainRequest::default()).await.unwrap()),
        "Undrain" => drop(admin.undrain().await.unwrap()),
        "Reload" => {
            admin.client.reload(ReloadRequest {}).await.unwrap();
        }
        _ => return false,
    }
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_something_away_is_a_line_of_the_audit_done_or_refused_and_nothing_else_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(&config(folder.path(), "")).await;
    let address = daemon.address("grpc");
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut admin = Rpc::over_tcp(address, Some(ADMIN)).await;
    let refused =
        |action: &str, caller: &str| (action.to_owned(), caller.to_owned(), "refused: PERMISSION_DENIED".to_owned());
    for (name, needed, action) in RPCS {
        let other = SCOPES.into_iter().find(|scope| *scope != needed && *scope != "admin").unwrap();
        assert_eq!(call(&channel, name, Some(&format!("{other}-token"))).await, Code::PermissionDenied, "{name}");
        let found = audited(&mut daemon, &mut admin).await;
        assert_eq!(found, action.map(|action| refused(action, other)).into_iter().collect::<Vec<_>>(), "{name}");
        if !done(name, &mut admin, &daemon).await {
            assert_eq!(action, None, "{name} is audited: `done` has to know how to have it done");
            call(&channel, name, Some(ADMIN)).await;
        }
        let found = audited(&mut daemon, &mut admin).await;
        let who: Vec<_> = found.iter().map(|(action, caller, _)| (action.as_str(), caller.as_str())).collect();
        assert_eq!(who, action.map(|action| (action, "admin")).into_iter().collect::<Vec<_>>(), "{name}");
        assert!(
            found.iter().all(|(_, _, result)| !result.contains("refused") && !result.contains("given up")),
            "{found:?}"
        );
    }
    // Over HTTP alone.
    let ops = daemon.address("ops");
    Http::new(ops).bearer("read-token").post("/ws/cleanup", "{}").await.refused(403, 7, "SCOPE_MISSING");
    assert_eq!(audited(&mut daemon, &mut admin).await, [refused("clean up", "read")]);
    Http::new(ops).bearer(ADMIN).post("/ws/cleanup", "{}").await;
    let found = audited(&mut daemon, &mut admin).await;
    assert_eq!(found, [("clean up".to_owned(), "admin".to_owned(), "0 closed, 0 expired".to_owned())]);
}
