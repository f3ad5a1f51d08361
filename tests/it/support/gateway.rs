//! A gateway in process: every listener on a port of its own choosing, a store in a folder that goes with it.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use pushgate::{
    api::proto::{ListSessionsRequest, SessionState},
    clock::Clock,
    config::{Config, Sources},
    hub::Hub,
    server::{Ended, Server, calls::Calls},
    types::UserId,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Client, Http, Rpc, Token, rpc, soon, token, until};

/// The token of a caller with all scopes. Tokens of single scopes are `<scope>-token`.
pub const ADMIN: &str = "admin-token";

/// A running gateway.
pub struct Gateway {
    /// The public listener.
    pub http: SocketAddr,
    /// The admin API over TCP.
    pub grpc: SocketAddr,
    /// The admin API over a Unix socket.
    pub socket: PathBuf,
    /// The probes.
    pub ops: SocketAddr,
    /// Its clock, to be set off where days have to pass.
    pub clock: Clock,
    /// Its inside, for what no client can see.
    pub hub: Hub,
    /// Where its files are.
    pub folder: Arc<TempDir>,
    changes: Vec<(String, String)>,
    stop: CancellationToken,
    task: JoinHandle<Ended>,
}

impl Gateway {
    /// With the configuration of [`base`].
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With some keys set, by the environment's rules: `("delivery.window", "4")`.
    pub async fn with(changes: &[(&str, &str)]) -> Self {
        let changes = changes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Self::over(Arc::new(tempfile::tempdir().unwrap()), changes, Calls::apart().unwrap()).await
    }

    /// With calls on the test's own runtime: on one thread, what happens between two turns of a task can be seen.
    pub async fn with_calls_beside() -> Self {
        Self::over(Arc::new(tempfile::tempdir().unwrap()), Vec::new(), Calls::beside()).await
    }

    async fn over(folder: Arc<TempDir>, changes: Vec<(String, String)>, calls: Calls) -> Self {
        let config = load(&folder, &changes);
        let clock = Clock::system();
        let bound = Server::bind_with(&config, clock.clone(), calls).await;
        let server = bound.unwrap_or_else(|error| panic!("{error}"));
        let address = |name: &str, unix: bool| {
            let listener = server
                .listeners()
                .iter()
                .find(|listener| listener.name == name && listener.address.starts_with("unix:") == unix);
            listener.map(|listener| listener.address.clone())
        };
        // One that is not there has an address that nobody can call.
        let tcp = |name: &str| address(name, false).map_or(([0, 0, 0, 0], 0).into(), |text| text.parse().unwrap());
        let (http, grpc, ops) = (tcp("http"), tcp("grpc"), tcp("ops"));
        let socket = address("grpc", true).map_or_else(PathBuf::new, |text| text["unix:".len()..].into());
        let hub = server.hub().clone();
        let stop = CancellationToken::new();
        let told = stop.clone();
        let task = tokio::spawn(server.run(async move { told.cancelled().await }));
        Self { http, grpc, socket, ops, clock, hub, folder, changes, stop, task }
    }

    /// Tells it to stop; [`Gateway::ended`] waits for the end.
    pub fn begin_stop(&self) {
        self.stop.cancel();
    }

    /// Waits for its end.
    pub async fn ended(self) -> Ended {
        soon("the gateway's end", self.task).await.unwrap()
    }

    /// Stops it in order.
    pub async fn stop(self) -> Ended {
        self.begin_stop();
        self.ended().await
    }

    /// Stops it in order and starts another over the same store.
    pub async fn restart(self) -> Self {
        let (folder, changes) = (Arc::clone(&self.folder), self.changes.clone());
        assert_eq!(self.stop().await, Ended::InOrder);
        Self::over(folder, changes, Calls::apart().unwrap()).await
    }

    /// Starts one over a store that another left, whatever has become of it since.
    pub async fn over_again(folder: &Arc<TempDir>, changes: &[(&str, &str)]) -> Self {
        let changes = changes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Self::over(Arc::clone(folder), changes, Calls::apart().unwrap()).await
    }

    /// The WebSocket endpoint with a query.
    pub fn url(&self, query: &str) -> String {
        format!("ws://{}/ws?{query}", self.http)
    }

    /// A client of that user, authenticated and past its `auth_success`.
    pub async fn client(&self, user: &str) -> Client {
        self.client_with(user, "").await
    }

    /// The same with more of a query, such as `device=phone&ackMode=client`.
    pub async fn client_with(&self, user: &str, query: &str) -> Client {
        Client::connect(&self.url(&format!("token={}&{query}", Token::of(user).sign()))).await
    }

    /// A client with that token.
    pub async fn client_by(&self, token: &Token, query: &str) -> Client {
        Client::connect(&self.url(&format!("token={}&{query}", token.sign()))).await
    }

    /// A caller with all scopes, over TCP.
    pub async fn rpc(&self) -> Rpc {
        Rpc::over_tcp(self.grpc, Some(ADMIN)).await
    }

    /// A caller with all scopes, over HTTP.
    pub fn ops(&self) -> Http {
        Http::new(self.ops).bearer(ADMIN)
    }

    /// Sets its wall clock ahead.
    pub fn later(&self, by: Duration) {
        self.clock.set_skew_micros(i64::try_from(by.as_micros()).unwrap());
    }

    /// How many notifications wait, of all users.
    pub async fn pending(&self) -> u64 {
        self.rpc().await.status().await.pending.unwrap().count
    }

    /// Waits until every session of a user has caught up with his log.
    pub async fn live(&self, user: &str) {
        let rpc = self.rpc().await;
        let filter = ListSessionsRequest { user_id: user.to_owned(), ..Default::default() };
        until("all are live", true, || {
            let (mut rpc, filter) = (rpc.clone(), filter.clone());
            async move { rpc.list(filter).await.unwrap().sessions.iter().all(|one| one.state() == SessionState::Live) }
        })
        .await;
    }

    /// Waits until a user has so many sessions.
    pub async fn sessions(&self, user: &str, count: usize) {
        let user = UserId::parse(user).unwrap();
        until("sessions of the user", count, async || self.hub.user_sessions(&user).len()).await;
    }

    /// How often something went wrong so far, by its name in `GetStatus`.
    pub async fn errors(&self, name: &str) -> u64 {
        self.rpc().await.errors(name).await
    }
}

/// What every test's gateway has in common: listeners on loopback, one HMAC key, tokens for callers.
pub fn base(folder: &std::path::Path) -> String {
    let folder = folder.display();
    let mut text = format!(
        r#"
        http.listen = ["127.0.0.1:0"]
        ops.listen = ["127.0.0.1:0"]
        store.path = "{folder}/data"
        grpc.listen = ["127.0.0.1:0", "unix:{folder}/admin.sock"]
        auth.keys = [{{ algorithm = "HS256", secret = "{}" }}]
        "#,
        token::SECRET
    );
    let tokens: Vec<_> = rpc::SCOPES
        .iter()
        .map(|scope| format!(r#"{{ name = "{scope}", token = "{scope}-token", scopes = ["{scope}"] }}"#))
        .collect();
    text.push_str(&format!("grpc.tokens = [{}]\n", tokens.join(", ")));
    text
}

fn load(folder: &TempDir, changes: &[(String, String)]) -> Config {
    let file = folder.path().join("pushgate.toml");
    std::fs::write(&file, base(folder.path())).unwrap();
    let environment = changes
        .iter()
        .map(|(key, value)| {
            let name = format!("PUSHGATE_{}", key.to_ascii_uppercase().replace('.', "__"));
            (name.into(), value.into())
        })
        .collect();
    let sources = Sources { file: Some(file), environment, ..Sources::default() };
    Config::load(sources).unwrap_or_else(|error| panic!("{error}")).config
}
