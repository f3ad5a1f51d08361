//! A TCP listener that can be closed and opened again, at the same address.
//!
//! One that was bound here is closed for good, so that whoever connects meanwhile is refused at once, and bound anew. One
//! that somebody else holds open as well, who passed it in, is kept and only not accepted from: it would be refused to
//! nobody if it were closed here, and could not be bound again.

use std::{net::SocketAddr, sync::Arc};

use tokio::{net::TcpListener, runtime::Handle, sync::watch};

use super::{BindError, listen_tcp};

/// Who bound a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This process.
    Here,
    /// The service manager, which passed it in and holds it open.
    PassedIn,
}

/// See the module.
#[derive(Debug)]
pub struct Door {
    address: SocketAddr,
    /// There while it is open.
    open: watch::Sender<Option<Arc<TcpListener>>>,
    /// One that was passed in.
    kept: Option<Arc<TcpListener>>,
    /// Where it is served; it may be opened from elsewhere.
    runtime: Handle,
}

impl Door {
    /// An open one. Call it on the runtime that serves it.
    pub fn new(listener: TcpListener, address: SocketAddr, origin: Origin) -> Self {
        let listener = Arc::new(listener);
        let kept = (origin == Origin::PassedIn).then(|| Arc::clone(&listener));
        Self { address, open: watch::Sender::new(Some(listener)), kept, runtime: Handle::current() }
    }

    /// The listener, once it is open. Whoever holds it lets go of it before he closes the door.
    pub async fn opened(&self) -> Arc<TcpListener> {
        let mut open = self.open.subscribe();
        loop {
            // In a block, so that the lock is let go of.
            {
                if let Some(listener) = &*open.borrow_and_update() {
                    return Arc::clone(listener);
                }
            }
            // The sender lives as long as this does.
            let _ = open.changed().await;
        }
    }

    /// Closes it, if that is still wanted: asked so that nobody opens it in between.
    pub fn close_if(&self, wanted: impl FnOnce() -> bool) {
        self.open.send_if_modified(|open| open.is_some() && wanted() && open.take().is_some());
    }

    /// Opens it, if it is closed.
    ///
    /// # Errors
    /// The address is taken, or may not be bound any more.
    pub fn open(&self) -> Result<(), BindError> {
        let _runtime = self.runtime.enter();
        let mut opened = Ok(());
        self.open.send_if_modified(|open| {
            if open.is_some() {
                return false;
            }
            match self.kept.clone().map_or_else(|| listen_tcp(self.address).map(Arc::new), Ok) {
                Ok(listener) => *open = Some(listener),
                Err(source) => opened = Err(BindError { address: self.address.to_string(), source }),
            }
            open.is_some()
        });
        opened
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::AsyncReadExt as _,
        net::{TcpSocket, TcpStream},
        time::timeout,
    };

    use super::{super::Bound, *};

    fn bound() -> (TcpListener, SocketAddr) {
        match super::super::bind("127.0.0.1:0").unwrap() {
            Bound::Tcp(listener, address) => (listener, address),
            Bound::Unix(..) => panic!("a Unix socket"),
        }
    }

    #[tokio::test]
    async fn while_it_is_closed_everybody_is_refused_and_then_it_is_open_at_the_same_address() {
        let (listener, address) = bound();
        let door = Door::new(listener, address, Origin::Here);
        door.close_if(|| false);
        drop(TcpStream::connect(address).await.unwrap());
        door.close_if(|| true);
        assert!(TcpStream::connect(address).await.is_err());
        let opening = door.opened();
        door.open().unwrap();
        let listener = timeout(Duration::from_secs(5), opening).await.unwrap();
        drop(TcpStream::connect(address).await.unwrap());
        assert_eq!(listener.local_addr().unwrap(), address);
        door.open().unwrap();
    }

    #[tokio::test]
    async fn an_address_that_was_taken_meanwhile_is_told_and_tried_again() {
        let (listener, address) = bound();
        let door = Door::new(listener, address, Origin::Here);
        door.close_if(|| true);
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(address).unwrap();
        let other = socket.listen(1).unwrap();
        let error = door.open().unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot listen on {address}: Address already in use")), "{error}");
        drop(other);
        door.open().unwrap();
    }

    #[tokio::test]
    async fn one_that_was_passed_in_lets_connections_wait_and_refuses_none() {
        let (listener, address) = bound();
        let door = Door::new(listener, address, Origin::PassedIn);
        door.close_if(|| true);
        let mut waiting = TcpStream::connect(address).await.unwrap();
        assert!(timeout(Duration::from_millis(50), door.opened()).await.is_err());
        door.open().unwrap();
        let (accepted, _) = door.opened().await.accept().await.unwrap();
        drop(accepted);
        assert_eq!(waiting.read(&mut [0]).await.unwrap(), 0);
    }
}
