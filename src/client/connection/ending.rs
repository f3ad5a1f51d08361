//! How a connection ends: what the other side says last, and this side's goodbye.

use futures_util::StreamExt as _;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{
    Message as Frame,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use super::{Code, Connection, END_TIMEOUT, Why};

impl Connection<'_> {
    /// Looks for the code with which the gateway closed behind what was not read. That is lost with the connection, or comes
    /// again.
    pub(super) async fn last_words(&mut self) -> Why {
        let reading = async {
            while let Some(Ok(frame)) = self.socket.next().await {
                if let Frame::Close(frame) = frame {
                    return Some(said(frame));
                }
            }
            None
        };
        let closed = tokio::select! {
            () = self.shared.cancel.cancelled() => return Why::Cancelled,
            closed = timeout(END_TIMEOUT, reading) => closed.ok().flatten(),
        };
        closed.unwrap_or_else(|| self.lost("the connection ended".to_owned()))
    }

    /// A refusal that was heard stands, even if the close frame behind it was lost.
    pub(super) fn lost(&mut self, reason: String) -> Why {
        self.refused.take().map_or(Why::Closed(Code::ABNORMAL.0, reason), Why::Refused)
    }

    /// Closes from this side and waits a moment for the answer, so that what was acked arrives.
    pub(super) async fn goodbye(&mut self) {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        // Nothing may come into the middle of a frame.
        let between = self.secret.as_ref().is_none_or(|(_, written)| *written == 0);
        let closing = async {
            if !self.broken && between && self.socket.close(Some(frame)).await.is_ok() {
                while let Some(Ok(_)) = self.socket.next().await {}
            }
        };
        tokio::select! {
            () = self.shared.cancel.cancelled() => {}
            _ = timeout(END_TIMEOUT, closing) => {}
        }
    }
}

/// What a close frame says.
pub(super) fn said(frame: Option<CloseFrame>) -> Why {
    frame.map_or(Why::Closed(Code::NO_STATUS.0, String::new()), |frame| {
        Why::Closed(frame.code.into(), frame.reason.to_string())
    })
}
