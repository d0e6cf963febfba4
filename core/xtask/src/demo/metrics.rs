//! What the key server tells on its metrics port.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::failure::{Failure, Result};
use crate::http;

/// How many requests of each opcode the server has answered.
pub(super) fn requests(address: SocketAddr) -> Result<BTreeMap<String, u64>> {
    let answer = http::get(address, "/metrics")?;
    match answer.status {
        200 => Ok(parse_requests(&answer.body)),
        status => Err(Failure::new(format!("http://{address}/metrics: expected status 200, got {status}"))),
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
