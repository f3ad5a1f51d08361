//! Every RPC asks for its scope: each of the service, with each scope there is. The table is held against the service's own
//! description, so that one that is new has to be in it. Of the paths over HTTP, `http.rs` has the same.

use std::collections::BTreeSet;

use futures_util::stream;
use prost::Message as _;
use pushgate::api::proto::DESCRIPTORS;
use tonic::{
    Code, Request,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::support::{Gateway, Rpc, rpc::SCOPES, soon};

/// What each RPC takes.
const RPCS: [(&str, &str); 21] = [
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
