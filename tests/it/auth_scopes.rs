//! Every call asks for its scope: each RPC of the service and each path of its twin over HTTP, with each scope there is. The
//! tables are held against the service's own description, so that a call that is new has to be in them.

use std::collections::BTreeSet;

use futures_util::stream;
use prost::Message as _;
use pushgate::api::proto::DESCRIPTORS;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::support::{Gateway, Http, Rpc, rpc::SCOPES, soon};

/// What each RPC takes.
const RPCS: [(&str, &str); 22] = [
    ("SendToUser", "send"),
    ("SendBatch", "send"),
    ("Broadcast", "send"),
    ("CloseUserSessions", "close"),
    ("GetStatus", "read"),
    ("ListSessions", "read"),
    ("ListPending", "read"),
    ("PurgePending", "admin"),
    ("ListDevices", "read"),
    ("ForgetDevice", "admin"),
    ("ForgetUser", "admin"),
    ("StreamEvents", "events"),
    ("Reload", "admin"),
    ("Backup", "admin"),
    ("SendToSession", "send"),
    ("ListUsers", "read"),
    ("SetLogFilter", "admin"),
    ("Publish", "send"),
    ("Subscribe", "send"),
    ("Unsubscribe", "send"),
    ("ListTopics", "read"),
    ("RevokeTokens", "admin"),
];

/// What each path over HTTP takes.
const PATHS: [(&str, &str, &str); 6] = [
    ("GET", "/ws/online", "read"),
    ("GET", "/ws/stats", "read"),
    ("GET", "/ws/sessions", "read"),
    ("POST", "/ws/send", "send"),
    ("POST", "/ws/broadcast", "send"),
    ("POST", "/ws/cleanup", "admin"),
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
    let code = |status: &Status| status.code();
    match soon("an answer", client.streaming(request, path, ProstCodec::<(), ()>::default())).await {
        Ok(_) => Code::Ok,
        Err(status) => code(&status),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rpc_asks_for_its_scope() {
    let set = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let services = set.file.iter().flat_map(|file| &file.service);
    let there: BTreeSet<&str> = services.flat_map(|service| &service.method).map(|method| method.name()).collect();
    assert_eq!(there, RPCS.iter().map(|(name, _)| *name).collect(), "an RPC that is not in the table, or none");

    let gateway = Gateway::start().await;
    let channel = Endpoint::from_shared(format!("http://{}", gateway.grpc)).unwrap().connect().await.unwrap();
    for (name, needed) in RPCS {
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
async fn every_path_asks_for_its_scope() {
    let gateway = Gateway::start().await;
    let nothing = gateway.ops().get("/nothing").await.refused(404, 5, "PATH_UNKNOWN");
    let words = nothing.split([' ', ',']).filter(|word| word.starts_with("/ws/"));
    assert_eq!(words.collect::<BTreeSet<_>>(), PATHS.iter().map(|(_, path, _)| *path).collect(), "{nothing}");
    for (method, path, needed) in PATHS {
        let ask = async |http: Http| match method {
            "GET" => http.get(path).await,
            _ => http.post(path, "{}").await,
        };
        for scope in SCOPES {
            let answer = ask(Http::new(gateway.ops).bearer(&format!("{scope}-token"))).await;
            if scope == needed || scope == "admin" {
                assert!(!matches!(answer.status.as_u16(), 401 | 403), "{path} with {scope}: {answer:?}");
            } else {
                answer.refused(403, 7, "SCOPE_MISSING");
            }
        }
        ask(Http::new(gateway.ops)).await.refused(401, 16, "UNAUTHENTICATED");
        ask(Http::new(gateway.ops).bearer("another-token")).await.refused(401, 16, "UNAUTHENTICATED");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_with_revocation_needs_the_scopes_of_both() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client("ann").await;
    let request = pushgate::api::proto::CloseUserSessionsRequest {
        user_id: "ann".into(),
        revoke_tokens: true,
        ..Default::default()
    };
    let mut closer = Rpc::over_tcp(gateway.grpc, Some("close-token")).await;
    let refused = closer.close(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("lacks the scope `admin`"), "{refused}");
    client.nothing_more().await;
    assert_eq!(gateway.rpc().await.close(request).await.unwrap(), 1);
    assert_eq!(client.closed().await.0, 1000);
}
