//! A caller over HTTP: a request, and the answer as a whole.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::soon;

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    /// A header's text; empty where it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The body of an answer that is good.
    #[track_caller]
    pub fn good(&self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        self.json()
    }

    /// The body, as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), "application/json", "{self:?}");
        serde_json::from_str(&self.body).unwrap()
    }

    /// Refused with this status, this code of google.rpc.Code and this reason; the message.
    #[track_caller]
    pub fn refused(&self, status: u16, code: i32, reason: &str) -> String {
        let body = self.json();
        let info = |detail: &&Value| detail["@type"] == "type.googleapis.com/google.rpc.ErrorInfo";
        let info = body["details"].as_array().unwrap().iter().find(info).unwrap_or_else(|| panic!("{self:?}"));
        assert_eq!(
            (self.status.as_u16(), &body["code"], &info["reason"]),
            (status, &code.into(), &reason.into()),
            "{self:?}"
        );
        assert_eq!(info["domain"], "pushgate");
        body["message"].as_str().unwrap().to_owned()
    }

    /// Refused for these fields (INVALID_ARGUMENT).
    #[track_caller]
    pub fn invalid(&self, fields: &[&str]) {
        self.refused(400, 3, "INVALID_ARGUMENT");
        let body = self.json();
        let bad = |detail: &&Value| detail["@type"] == "type.googleapis.com/google.rpc.BadRequest";
        let bad = body["details"].as_array().unwrap().iter().find(bad).unwrap();
        let named: Vec<_> = bad["fieldViolations"].as_array().unwrap().iter().map(|one| &one["field"]).collect();
        assert_eq!(named, fields, "{self:?}");
    }
}

/// A caller at a listener.
#[derive(Clone)]
pub struct Http {
    address: SocketAddr,
    /// What every request of his has.
    headers: Vec<(String, String)>,
}

impl Http {
    /// Without a token.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, headers: vec![("host".to_owned(), address.to_string())] }
    }

    /// With this bearer token.
    pub fn bearer(&self, token: &str) -> Self {
        self.with("authorization", &format!("Bearer {token}"))
    }

    /// With another header, or another value for it.
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut with = self.without(name);
        with.headers.push((name.to_owned(), value.to_owned()));
        with
    }

    /// Without that header.
    pub fn without(&self, name: &str) -> Self {
        let mut without = self.clone();
        without.headers.retain(|(known, _)| known != name);
        without
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, "").await
    }

    /// POST of JSON.
    pub async fn post(&self, path: &str, body: impl ToString) -> Answer {
        let typed = self.headers.iter().any(|(name, _)| name == "content-type");
        let caller = if typed { self.clone() } else { self.with("content-type", "application/json") };
        caller.call("POST", path, body.to_string()).await
    }

    /// Any request, on a connection of its own.
    pub async fn call(&self, method: &str, path: &str, body: impl Into<Bytes>) -> Answer {
        soon("an answer", self.begin(method, path, body.into())).await
    }

    /// The same, for as long as it takes; dropped, its connection is closed.
    pub async fn begin(&self, method: &str, path: &str, body: Bytes) -> Answer {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let answered = async move {
            let response = sender.send_request(request.body(Full::new(body)).unwrap()).await.unwrap();
            let (head, body) = response.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            Answer { status: head.status, headers: head.headers, body: String::from_utf8(body.into()).unwrap() }
        };
        let mut answered = std::pin::pin!(answered);
        tokio::select! {
            answer = &mut answered => answer,
            _ = connection => answered.await,
        }
    }
}
