//! A WebSocket client as an application's would be: tokio-tungstenite, which answers pings on its own as long as it is
//! read from.

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest,
        handshake::client::{Request, Response},
    },
};

use super::soon;

/// What a client may speak over.
pub trait Line: AsyncRead + AsyncWrite + Send + Unpin {}
impl<L: AsyncRead + AsyncWrite + Send + Unpin> Line for L {}

/// A connection to the gateway.
pub struct Client {
    /// `auth_success`, where it was waited for.
    pub hello: Value,
    socket: WebSocketStream<Box<dyn Line>>,
    barriers: u32,
}

/// A request for the endpoint at `url` with more headers.
pub fn request(url: &str, headers: &[(&'static str, &str)]) -> Request {
    let mut request = url.into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    request
}

impl Client {
    /// Connects and waits for `auth_success`.
    pub async fn connect(url: &str) -> Self {
        Self::open(request(url, &[])).await.unwrap().0.welcomed().await
    }

    /// Connects; what the gateway says first is yet to be read.
    pub async fn open(request: Request) -> Result<(Self, Response), Error> {
        let address = request.uri().authority().unwrap().as_str().to_owned();
        let stream = soon("a connection", TcpStream::connect(address)).await?;
        stream.set_nodelay(true)?;
        Self::open_over(stream, request).await
    }

    /// The same over a line that is there.
    pub async fn open_over(line: impl Line + 'static, request: Request) -> Result<(Self, Response), Error> {
        let line: Box<dyn Line> = Box::new(line);
        let (socket, response) = soon("the handshake", tokio_tungstenite::client_async(request, line)).await?;
        Ok((Self { hello: Value::Null, socket, barriers: 0 }, response))
    }

    /// Waits for `auth_success`.
    pub async fn welcomed(mut self) -> Self {
        self.hello = self.next().await;
        assert_eq!(self.hello["type"], "auth_success", "{}", self.hello);
        self
    }

    /// The id of its session.
    pub fn session(&self) -> String {
        self.hello["sessionId"].as_str().unwrap().to_owned()
    }

    /// The next message or control frame. Pings are answered before it returns.
    pub async fn next_frame(&mut self) -> Option<Result<Message, Error>> {
        let frame = soon("a frame", self.socket.next()).await;
        if matches!(frame, Some(Ok(Message::Ping(_)))) {
            self.socket.flush().await.unwrap();
        }
        frame
    }

    /// The next message, as it came.
    pub async fn next_message(&mut self) -> Message {
        loop {
            match self.next_frame().await {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => return message,
                other => panic!("instead of a message: {other:?}"),
            }
        }
    }

    /// The next message, which must be text.
    pub async fn next(&mut self) -> Value {
        match self.next_message().await {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("instead of text: {other:?}"),
        }
    }

    /// The `data` of the next so many notifications.
    pub async fn data(&mut self, count: usize) -> Vec<Value> {
        let mut data = Vec::with_capacity(count);
        for _ in 0..count {
            let message = self.next().await;
            assert_eq!(message["type"], "notification", "{message}");
            data.push(message["data"].clone());
        }
        data
    }

    /// Sends text.
    pub async fn say(&mut self, message: &Value) {
        self.send(Message::text(message.to_string())).await;
    }

    /// Sends a message.
    pub async fn send(&mut self, message: Message) {
        soon("a message to leave", self.socket.send(message)).await.unwrap();
    }

    /// Sends a message and returns what comes next.
    pub async fn ask(&mut self, message: &Value) -> Value {
        self.say(message).await;
        self.next().await
    }

    /// Proves that nothing else was on its way: the next message is the answer to a question asked now.
    pub async fn nothing_more(&mut self) {
        self.barriers += 1;
        let id = format!("barrier-{}", self.barriers);
        let answer = self.ask(&json!({ "type": "ping", "id": id })).await;
        assert_eq!((&answer["type"], &answer["replyTo"]), (&json!("pong"), &json!(id)), "{answer}");
    }

    /// Makes sure that everything received so far is confirmed: the gateway's ping was read and answered by the first
    /// question, and the gateway had read that answer when it answered the second.
    pub async fn settle(&mut self) {
        self.nothing_more().await;
        self.nothing_more().await;
    }

    /// Waits for the close frame, which must be the next message: its code and reason.
    pub async fn closed(&mut self) -> (u16, String) {
        loop {
            match self.next_frame().await {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(Some(frame)))) => return (frame.code.into(), frame.reason.to_string()),
                other => panic!("instead of a close frame: {other:?}"),
            }
        }
    }

    /// Closes it in order and waits for the end of the connection.
    pub async fn close(mut self) {
        self.socket.close(None).await.unwrap();
        while self.next_frame().await.is_some_and(|frame| frame.is_ok()) {}
    }
}

/// The HTTP status of a refused handshake, and its headers.
pub async fn refusal(request: Request) -> tokio_tungstenite::tungstenite::http::Response<Option<Vec<u8>>> {
    match Client::open(request).await {
        Err(Error::Http(response)) => *response,
        Err(other) => panic!("instead of a refusal: {other}"),
        Ok(_) => panic!("instead of a refusal: a connection"),
    }
}
