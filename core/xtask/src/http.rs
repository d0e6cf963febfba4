//! What servers on this machine tell over plain HTTP.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::failure::{Failure, Result};

/// How long an answer may take, on a machine that is busy with other things.
const TIMEOUT: Duration = Duration::from_secs(60);

/// An answer.
pub(crate) struct Answer {
    /// Its status code.
    pub(crate) status: u16,
    head: String,
    /// The page itself.
    pub(crate) body: String,
}

/// Asks for a page.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<Answer> {
    let failure = |problem: &str| Failure::new(format!("http://{address}{path}: {problem}"));
    let answer = exchange(address, path).map_err(|error| failure(&error.to_string()))?;
    Answer::parse(&answer).ok_or_else(|| failure("the answer is not HTTP, or comes in chunks"))
}

/// Whether the key server that tells how it is on this address says that it is ready.
pub(crate) fn is_ready(address: SocketAddr) -> bool {
    get(address, "/readyz").is_ok_and(|answer| answer.status == 200)
}

fn exchange(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

impl Answer {
    fn parse(text: &str) -> Option<Self> {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let answer = Self { status, head: head.to_owned(), body: body.to_owned() };
        answer.header("transfer-encoding").is_none().then_some(answer)
    }

    /// The value of a header field.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().filter_map(|line| line.split_once(':'));
        fields.into_iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_answers_but_no_chunks() {
        let answer =
            Answer::parse("HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\n\r\nno\n").expect("HTTP");
        assert_eq!((answer.status, answer.header("content-type")), (404, Some("text/plain")));
        assert!(Answer::parse("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0").is_none());
    }
}
