//! What the key server tells on its metrics port, over plain HTTP.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::failure::{Failure, Result};

/// For a server on this machine, more than enough.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Whether the server says that it is ready.
pub(super) fn is_ready(address: SocketAddr) -> bool {
    get(address, "/readyz").is_ok_and(|(status, _)| status == 200)
}

/// How many requests of each opcode the server has answered.
pub(super) fn requests(address: SocketAddr) -> Result<BTreeMap<String, u64>> {
    let failure = |problem: &str| Failure::new(format!("http://{address}/metrics: {problem}"));
    match get(address, "/metrics") {
        Ok((200, text)) => Ok(parse_requests(&text)),
        Ok((status, _)) => Err(failure(&format!("expected status 200, got {status}"))),
        Err(error) => Err(failure(&error.to_string())),
    }
}

/// Reads lines such as `keyless_requests{opcode="OpPing"} 2`.
fn parse_requests(text: &str) -> BTreeMap<String, u64> {
    let counter = |line: &str| {
        let (opcode, count) = line.strip_prefix("keyless_requests{opcode=\"")?.split_once("\"} ")?;
        Some((opcode.to_owned(), count.trim().parse().ok()?))
    };
    text.lines().filter_map(counter).collect()
}

fn get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    status.map(|status| (status, body)).ok_or_else(|| io::Error::other("the answer is not HTTP"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_counters_and_skips_the_rest() {
        let text = "# TYPE keyless_requests counter\nkeyless_requests{opcode=\"OpPing\"} 2\n\
                    keyless_requests{opcode=\"OpRSASignSHA256\"} 1\nother 7\n";
        let requests = parse_requests(text);
        assert_eq!(requests.get("OpPing"), Some(&2));
        assert_eq!(requests.get("OpRSASignSHA256"), Some(&1));
        assert_eq!(requests.len(), 2);
    }
}
