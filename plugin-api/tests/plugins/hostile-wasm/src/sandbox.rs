//! What a program can do on a machine, by the standard library and so by WASI: here, nothing.

use std::{
    env, fs,
    io::{self, Write},
    net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket},
    thread,
    time::{Duration, Instant},
};

pub(crate) fn read(path: &str) -> io::Result<String> {
    let entries = fs::read_dir("/").map_or(0, Iterator::count);
    fs::read(path).map(|content| format!("read {} bytes of {path}; {entries} entries", content.len()))
}

pub(crate) fn write(path: &str) -> io::Result<String> {
    fs::write(path, "written by a guest").map(|()| format!("wrote {path}"))
}

pub(crate) fn environment() -> String {
    let directory = env::current_dir().map_or_else(|_| "none".to_owned(), |path| path.display().to_string());
    format!("{} variables, {} arguments, in {directory}", env::vars().count(), env::args().count())
}

pub(crate) fn connect(address: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"hello")?;
    Ok(format!("connected to {address}"))
}

pub(crate) fn listen() -> io::Result<String> {
    TcpListener::bind("127.0.0.1:0").map(|_| "listens".to_owned())
}

pub(crate) fn send(address: &str) -> io::Result<String> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.send_to(b"hello", address).map(|_| format!("sent to {address}"))
}

pub(crate) fn resolve(name: &str) -> io::Result<String> {
    (name, 443).to_socket_addrs().map(|addresses| format!("{name} has {} addresses", addresses.count()))
}

pub(crate) fn sleep(seconds: u64) -> io::Result<String> {
    let began = Instant::now();
    thread::sleep(Duration::from_secs(seconds));
    Ok(format!("slept for {} s", began.elapsed().as_secs()))
}

/// To both streams; that it may fail doesn't matter.
pub(crate) fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
    let _ = io::stderr().write_all(text.as_bytes());
}
