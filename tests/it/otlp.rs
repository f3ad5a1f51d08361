//! Traces, as a collector sees them: one in the test's own process, which decodes what comes.

use std::{
    collections::{BTreeSet, VecDeque},
    convert::Infallible,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Request as HttpRequest, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use pushgate::{
    api::proto::{BroadcastRequest, PublishRequest, SendToUserRequest, SendToUserResponse},
    metrics::Metrics,
    otlp::wire::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse, Span, SpanKind, Value,
    },
    server::Ended,
};
use rustix::process::Signal;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
};
use tokio_rustls::TlsAcceptor;

use crate::support::{
    Client, Gateway, Rpc, Token,
    child::{Daemon, config, run},
    gateway::ADMIN,
    rpc::{durable, notification, request},
    soon,
    tls::Authority,
    until,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const PAYLOAD: &str = "a payload that is nobody's business";

/// What comes before an answer of OK: a status, and when to come back.
type Refusals = Arc<parking_lot::Mutex<VecDeque<(u16, &'static str)>>>;

/// What a collector is asked: path and headers, and the body.
type Asked = (String, HeaderMap, Bytes);

struct Collector {
    address: SocketAddr,
    asked: UnboundedReceiver<Asked>,
    refusals: Refusals,
}

impl Collector {
    async fn start() -> Self {
        Self::with(None).await
    }

    async fn with(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (tell, asked) = mpsc::unbounded_channel();
        let (address, refusals) = (listener.local_addr().unwrap(), Refusals::default());
        let answers = Arc::clone(&refusals);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tell, answers, tls) = (tell.clone(), Arc::clone(&answers), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, tell, answers).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, tell, answers).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, asked, refusals }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next request.
    async fn next(&mut self) -> Asked {
        soon("a request of the exporter", self.asked.recv()).await.unwrap()
    }

    /// So many spans, and no more than these by now.
    async fn spans(&mut self, count: usize) -> Vec<Span> {
        let mut spans = Vec::new();
        while spans.len() < count {
            let (path, headers, body) = self.next().await;
            assert!(
                path == "POST /v1/traces" && headers["content-type"] == "application/x-protobuf",
                "{path} {headers:?}"
            );
            for secret in [PAYLOAD, ADMIN, "alice"] {
                assert!(!String::from_utf8_lossy(&body).contains(secret), "{secret} in {body:?}");
            }
            let request = ExportTraceServiceRequest::decode(body).unwrap();
            for resource in request.resource_spans {
                let names: Vec<_> = resource.resource.unwrap().attributes.into_iter().map(|one| one.key).collect();
                assert_eq!(names, ["service.name", "service.version", "service.instance.id", "host.name"]);
                spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
        let names: Vec<_> = spans.iter().map(|span| &span.name).collect();
        assert_eq!(spans.len(), count, "{names:?}");
        spans
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    tell: UnboundedSender<Asked>,
    answers: Refusals,
) {
    let service = service_fn(move |request: HttpRequest<Incoming>| {
        let (tell, answers) = (tell.clone(), Arc::clone(&answers));
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let refusal = answers.lock().pop_front();
            let answer = match refusal {
                Some((200, why)) => {
                    let partial = ExportTracePartialSuccess { rejected_spans: 1, error_message: why.to_owned() };
                    let body = ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec();
                    Response::new(Full::new(Bytes::from(body)))
                }
                Some((status, after)) => {
                    let answer = Response::builder().status(status);
                    let answer = if after.is_empty() { answer } else { answer.header("retry-after", after) };
                    answer.body(Full::default()).unwrap()
                }
                None => Response::new(Full::default()),
            };
            let _ = tell.send((format!("{} {}", head.method, head.uri.path()), head.headers, body));
            Ok::<_, Infallible>(answer)
        }
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// A gateway that exports to it, and records that share of the calls without a parent.
async fn gateway(collector: &Collector, ratio: &str) -> Gateway {
    Gateway::with(&[("otlp.endpoint", &collector.url()), ("otlp.sample_ratio", ratio)]).await
}

fn parent(flags: &str) -> String {
    format!("00-{TRACE}-{PARENT}-{flags}")
}

fn with_parent<T>(message: T, parent: Option<&str>) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Some(parent) = parent {
        request.metadata_mut().insert("traceparent", parent.parse().unwrap());
        request.metadata_mut().insert("tracestate", "vendor=value".parse().unwrap());
    }
    request
}

async fn send(rpc: &mut Rpc, message: SendToUserRequest, parent: Option<&str>) -> SendToUserResponse {
    soon("an answer", rpc.client.send_to_user(with_parent(message, parent))).await.unwrap().into_inner()
}

fn alice() -> SendToUserRequest {
    request("alice", notification(PAYLOAD))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name} in {spans:?}"))
}

fn text<'a>(span: &'a Span, key: &str) -> &'a str {
    let found = span.attributes.iter().find(|one| one.key == key);
    match found.and_then(|one| one.value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(text)) => text,
        other => panic!("{key} is {other:?} in {span:?}"),
    }
}

fn number(span: &Span, key: &str) -> i64 {
    let found = span.attributes.iter().find(|one| one.key == key);
    match found.and_then(|one| one.value.as_ref()?.value.as_ref()) {
        Some(Value::IntValue(number)) => *number,
        other => panic!("{key} is {other:?} in {span:?}"),
    }
}

fn counted(metrics: &Metrics) -> (u64, u64) {
    (metrics.spans_exported.get(), metrics.spans_dropped.get())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_is_seen_from_its_call_to_its_confirmation() {
    let mut collector = Collector::start().await;
    let gateway = gateway(&collector, "0%").await;
    let mut client = gateway.client("alice").await;
    gateway.live("alice").await;
    let mut rpc = gateway.rpc().await;
    send(&mut rpc, alice(), Some(&parent("01"))).await;
    client.data(1).await;
    client.settle().await;
    let spans = collector.spans(4).await;
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE && span.trace_state == "vendor=value"), "{spans:?}");
    let call = named(&spans, "pushgate.v1.Gateway/SendToUser");
    assert_eq!((hex(&call.parent_span_id).as_str(), call.kind), (PARENT, SpanKind::Server as i32));
    assert_eq!(call.flags & 0x301, 0x301, "sampled, and the parent is remote");
    assert_eq!((text(call, "rpc.system"), text(call, "rpc.service")), ("grpc", "pushgate.v1.Gateway"));
    assert_eq!((text(call, "rpc.method"), number(call, "rpc.grpc.status_code")), ("SendToUser", 0));
    assert!(call.status.is_none());
    for name in ["store.commit", "deliver", "confirm"] {
        let span = named(&spans, name);
        assert_eq!((&span.parent_span_id, span.kind), (&call.span_id, SpanKind::Internal as i32), "{name}");
        assert!(span.start_time_unix_nano >= call.start_time_unix_nano, "{name} begins before the call");
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "{name} ends before it begins");
    }
    let ids: BTreeSet<_> = spans.iter().map(|span| &span.span_id).collect();
    assert!(ids.len() == 4 && ids.iter().all(|id| id.len() == 8 && ***id != [0; 8]));
    let (deliver, confirm) = (named(&spans, "deliver"), named(&spans, "confirm"));
    let session = client.session();
    assert_eq!((text(deliver, "pushgate.session.id"), text(confirm, "pushgate.session.id")), (&*session, &*session));
    assert_eq!(text(confirm, "pushgate.outcome"), "confirmed");
    assert!(deliver.end_time_unix_nano <= confirm.end_time_unix_nano, "it is written before it is confirmed");
    until("all are counted", (4, 0), async || counted(gateway.hub.metrics())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_caller_does_not_record_is_not_and_roots_are_by_their_share() {
    let mut collector = Collector::start().await;
    let nothing = gateway(&collector, "0%").await;
    let mut rpc = nothing.rpc().await;
    let malformed = [
        parent("01").to_uppercase(),
        format!("ff{}", &parent("01")[2..]),
        parent("01").replace(TRACE, &"0".repeat(32)),
        parent("01").replace(PARENT, &"0".repeat(16)),
        parent("1"),
        format!("{}-more", parent("01")),
    ];
    for parent in [None, Some(parent("00"))].into_iter().chain(malformed.iter().cloned().map(Some)) {
        send(&mut rpc, alice(), parent.as_deref()).await;
    }
    // Had anything been recorded, it would come with these or before.
    send(&mut rpc, alice(), Some(&parent("01"))).await;
    let spans = collector.spans(2).await;
    assert_eq!((&*spans[0].name, &*spans[1].name), ("store.commit", "pushgate.v1.Gateway/SendToUser"));
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE));
    assert_eq!(nothing.stop().await, Ended::InOrder);

    let all = gateway(&collector, "100%").await;
    let mut rpc = all.rpc().await;
    send(&mut rpc, alice(), Some(&parent("00"))).await;
    send(&mut rpc, alice(), None).await;
    send(&mut rpc, alice(), Some(&malformed[0])).await;
    let spans = collector.spans(4).await;
    let roots: Vec<_> = spans.iter().filter(|span| span.kind == SpanKind::Server as i32).collect();
    assert!(roots.len() == 2 && roots.iter().all(|root| root.parent_span_id.is_empty() && root.trace_state.is_empty()));
    assert_ne!(roots[0].trace_id, roots[1].trace_id);
    assert!(roots.iter().all(|root| hex(&root.trace_id) != TRACE && root.flags & 0x200 == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_parents_are_none() {
    let mut collector = Collector::start().await;
    let gateway = gateway(&collector, "0%").await;
    let mut rpc = gateway.rpc().await;
    let mut twice = with_parent(alice(), Some(&parent("01")));
    twice.metadata_mut().append("traceparent", parent("01").parse().unwrap());
    rpc.client.send_to_user(twice).await.unwrap();
    rpc.client.get_status(with_parent(Default::default(), Some(&parent("01")))).await.unwrap();
    let spans = collector.spans(1).await;
    assert_eq!(spans[0].name, "pushgate.v1.Gateway/GetStatus");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_goes_without_a_confirmation_is_told_so() {
    let mut collector = Collector::start().await;
    let gateway = gateway(&collector, "0%").await;
    let mut client = gateway.client_with("alice", "ackMode=client").await;
    gateway.live("alice").await;
    let mut rpc = gateway.rpc().await;
    send(&mut rpc, alice(), Some(&parent("01"))).await;
    client.data(1).await;
    client.close().await;
    let spans = collector.spans(3).await;
    assert_eq!(text(named(&spans, "confirm"), "pushgate.outcome"), "unconfirmed");

    // Whoever comes for it within a minute is seen, too.
    send(&mut rpc, alice(), Some(&parent("01"))).await;
    collector.spans(2).await;
    let mut client = gateway.client("alice").await;
    client.data(2).await;
    client.settle().await;
    let spans = collector.spans(2).await;
    assert_eq!(text(named(&spans, "confirm"), "pushgate.outcome"), "confirmed");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_every_kind_have_a_span_and_failures_say_so() {
    let mut collector = Collector::start().await;
    let topics = r#"[{ pattern = "log", subscribe = ["*"], durable = true }]"#;
    let changes = [("otlp.endpoint", &*collector.url()), ("otlp.sample_ratio", "0%"), ("topics", topics)];
    let gateway = Gateway::with(&changes).await;
    let mut rpc = gateway.rpc().await;
    let parent = parent("01");
    let some = Some(&*parent);

    let broadcast = |durably: bool| match durably {
        true => durable(notification(PAYLOAD), &[]),
        false => BroadcastRequest { notification: Some(notification(PAYLOAD)), ..Default::default() },
    };
    rpc.client.broadcast(with_parent(broadcast(false), some)).await.unwrap();
    assert_eq!(collector.spans(1).await[0].name, "pushgate.v1.Gateway/Broadcast");
    rpc.client.broadcast(with_parent(broadcast(true), some)).await.unwrap();
    named(&collector.spans(2).await, "store.commit");
    let publish = PublishRequest { topic: "log".into(), notification: Some(notification(PAYLOAD)) };
    rpc.client.publish(with_parent(publish, some)).await.unwrap();
    let spans = collector.spans(2).await;
    assert_eq!(named(&spans, "store.commit").parent_span_id, named(&spans, "pushgate.v1.Gateway/Publish").span_id);

    // What a caller does wrong is no failure of the gateway's.
    let bad = SendToUserRequest::default();
    rpc.client.send_to_user(with_parent(bad, some)).await.unwrap_err();
    let spans = collector.spans(1).await;
    assert_eq!((number(&spans[0], "rpc.grpc.status_code"), &spans[0].status), (3, &None));
    let http = gateway.ops().with("traceparent", &parent);
    let body = json!({ "userId": "alice", "notification": { "type": "t", "data": PAYLOAD } });
    http.post("/ws/send", &body).await.good();
    let spans = collector.spans(2).await;
    let call = named(&spans, "POST /ws/send");
    assert_eq!((hex(&call.parent_span_id).as_str(), number(call, "http.response.status_code")), (PARENT, 200));
    assert_eq!((text(call, "http.route"), text(call, "http.request.method")), ("/ws/send", "POST"));
    assert_eq!(named(&spans, "store.commit").parent_span_id, call.span_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_tried_again_where_the_collector_says_so_and_else_dropped() {
    let mut collector = Collector::start().await;
    let gateway = gateway(&collector, "0%").await;
    let metrics = gateway.hub.metrics().clone();
    let mut rpc = gateway.rpc().await;
    let mut call = async || {
        rpc.client.get_status(with_parent(Default::default(), Some(&parent("01")))).await.unwrap();
    };
    collector.refusals.lock().extend([(429, "0"), (502, "0"), (503, "0"), (504, "0")]);
    call().await;
    let (_, _, first) = collector.next().await;
    for _ in 0..4 {
        assert_eq!(collector.next().await.2, first, "the same again");
    }
    until("it is counted", (1, 0), async || counted(&metrics)).await;
    for (refusal, dropped) in
        [((400, ""), 1), ((500, "0"), 2), ((301, ""), 3), ((503, "18446744073709551615"), 4), ((200, "old"), 5)]
    {
        collector.refusals.lock().push_back(refusal);
        call().await;
        collector.next().await;
        until("it is counted", (1, dropped), async || counted(&metrics)).await;
    }
    call().await;
    assert_ne!(collector.next().await.2, first);
    until("it is counted", (2, 5), async || counted(&metrics)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_exports_what_is_left() {
    let mut collector = Collector::start().await;
    let gateway = gateway(&collector, "0%").await;
    let mut client = gateway.client_with("alice", "ackMode=client").await;
    gateway.live("alice").await;
    let mut rpc = gateway.rpc().await;
    send(&mut rpc, alice(), Some(&parent("01"))).await;
    client.data(1).await;
    assert_eq!(gateway.stop().await, Ended::InOrder);
    // All of it was sent by now.
    let mut spans = Vec::new();
    while let Ok((_, _, body)) = collector.asked.try_recv() {
        let request = ExportTraceServiceRequest::decode(body).unwrap();
        spans.extend(request.resource_spans.into_iter().flat_map(|one| one.scope_spans).flat_map(|one| one.spans));
    }
    assert_eq!(spans.len(), 3, "{spans:?}");
    assert_eq!(text(named(&spans, "confirm"), "pushgate.outcome"), "unconfirmed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_holds_nobody_up_and_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let away = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let more = format!("otlp.endpoint = \"http://{away}\"\notlp.sample_ratio = \"100%\"\n");
    let mut daemon = Daemon::start(&config(folder.path(), &more)).await;
    let (http, grpc) = (daemon.address("http"), daemon.address("grpc"));
    let url = format!("ws://{http}/ws?token={}", Token::of("alice").sign());
    let mut client = Client::connect(&url).await;
    let mut rpc = Rpc::over_tcp(grpc, Some(ADMIN)).await;
    rpc.send("alice", 0).await;
    let line =
        daemon.logged("traces cannot be exported; they are dropped where that lasts, and all else goes on").await;
    assert_eq!(line["level"], "WARN");
    // More spans than wait, and more batches than one: everything else goes on meanwhile.
    client.data(1).await;
    for n in 1..=700 {
        rpc.send("alice", n).await;
        assert_eq!(client.data(1).await, [n]);
    }
    let metrics = crate::support::Http::new(daemon.address("ops"));
    until("spans are dropped", true, async || {
        let samples = crate::http::samples(&metrics.get("/metrics").await.body);
        samples["pushgate_spans_dropped_total"] > 0.0
    })
    .await;
    let began = Instant::now();
    daemon.signal(Signal::TERM);
    assert!(daemon.ended().await.success());
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!(daemon.log.matches("traces cannot be exported").count(), 1, "{}", daemon.log);
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_go_by_tls_with_headers_of_a_file() {
    let authority = Authority::new();
    let issued = authority.server(&["127.0.0.1"], 1);
    let files = crate::support::tls::Files::new(&issued, &authority);
    let mut collector = Collector::with(Some(acceptor(&issued))).await;
    let headers = files.path("headers");
    std::fs::write(&headers, "authorization: Bearer of-the-collector\nx-scope-orgid: a\n").unwrap();
    let endpoint = format!("https://{}/base/", collector.address);
    let (headers, ca) = (headers.to_str().unwrap().to_owned(), files.text("ca.crt"));
    let mut changes =
        vec![("otlp.endpoint", &*endpoint), ("otlp.sample_ratio", "100%"), ("otlp.headers_file", &*headers)];
    changes.push(("otlp.ca_file", &*ca));
    let gateway = Gateway::with(&changes).await;
    gateway.rpc().await.status().await;
    let (path, headers, _) = collector.next().await;
    assert_eq!(path, "POST /base/v1/traces");
    assert_eq!(
        (&headers["authorization"], &headers["x-scope-orgid"]),
        (&"Bearer of-the-collector".parse().unwrap(), &"a".parse().unwrap())
    );
    gateway.stop().await;

    // Of one whom nobody vouches for, nothing is taken, and it gets nothing.
    changes.pop();
    let gateway = Gateway::with(&changes).await;
    while collector.asked.try_recv().is_ok() {}
    gateway.rpc().await.status().await;
    let metrics = gateway.hub.metrics().clone();
    assert_eq!(gateway.stop().await, Ended::InOrder);
    assert_eq!(metrics.spans_exported.get(), 0);
    assert!(metrics.spans_dropped.get() > 0 && collector.asked.try_recv().is_err());
}

fn acceptor(issued: &crate::support::tls::Issued) -> TlsAcceptor {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
    let chain = vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    TlsAcceptor::from(Arc::new(builder.with_no_client_auth().with_single_cert(chain, key).unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_used_are_named_before_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let bad = folder.path().join("headers");
    std::fs::write(&bad, "a: b\nsecret without a colon\n").unwrap();
    let (bad, missing) = (bad.display().to_string(), folder.path().join("missing").display().to_string());
    for (key, file, why) in [
        ("headers_file", &bad, "line 2 is no header; write `name: value`"),
        ("headers_file", &missing, "No such file or directory"),
        ("ca_file", &bad, "holds no certificate in PEM"),
    ] {
        let more = format!("otlp.endpoint = \"https://127.0.0.1:1\"\notlp.{key} = \"{file}\"\n");
        let file = config(folder.path(), &more);
        for command in [&["config", "check"][..], &["serve"]] {
            let arguments: Vec<&str> = command.iter().copied().chain(["--config", file.to_str().unwrap()]).collect();
            let (code, _, said) = run(&arguments).await;
            assert!(code == 78 && said.contains(&format!("otlp.{key}")) && said.contains(why), "{command:?}: {said}");
            assert!(!said.contains("secret"), "{said}");
        }
    }
}
