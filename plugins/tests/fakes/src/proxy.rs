//! Leads the names of services to their fakes.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::{RUNTIME, listener};

/// The longest head of a request, in bytes.
const HEAD_MAX: usize = 8 << 10;

/// A proxy that understands `CONNECT` (RFC 9110 section 9.3.6) to the hosts that it was told of, and nothing else.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    places: Arc<Mutex<HashMap<String, SocketAddr>>>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts one that leads each `host:port` to an address.
    ///
    /// # Panics
    ///
    /// Without a free port.
    pub fn start(places: impl IntoIterator<Item = (impl Into<String>, SocketAddr)>) -> Self {
        let listener = listener();
        let places: HashMap<_, _> =
            places.into_iter().map(|(name, address)| (name.into(), address)).collect();
        let places = Arc::new(Mutex::new(places));
        let address = listener.local_addr().expect("an address");
        let task = RUNTIME.spawn(serve(listener, Arc::clone(&places)));
        Self { address, places, task }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its address as clients want it: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Leads one more `host:port` somewhere, or elsewhere.
    pub fn lead(&self, name: &str, address: SocketAddr) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), address);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, places: Arc<Mutex<HashMap<String, SocketAddr>>>) {
    while let Ok((client, _)) = listener.accept().await {
        let places = Arc::clone(&places);
        tokio::spawn(async move {
            let _ = lead(client, &places).await; // whoever goes away, has gone
        });
    }
}

async fn lead(mut client: TcpStream, places: &Mutex<HashMap<String, SocketAddr>>) -> io::Result<()> {
    let head = head(&mut client).await?;
    let name = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).unwrap_or_default();
    let place = places.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied();
    let Some(place) = place else {
        return client.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").await;
    };
    let mut service = TcpStream::connect(place).await?;
    client.set_nodelay(true)?;
    service.set_nodelay(true)?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    copy_bidirectional(&mut client, &mut service).await.map(|_| ())
}

/// Reads up to the empty line. Nothing follows it before the answer.
async fn head(client: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == HEAD_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        head.push(client.read_u8().await?);
    }
    String::from_utf8(head).map_err(|_| io::ErrorKind::InvalidData.into())
}
