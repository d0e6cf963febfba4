//! The page: what was negotiated.

use rustls::{HandshakeKind, ServerConnection};

use crate::sites::Choice;

/// The page for a connection whose handshake is complete.
pub(crate) fn page(connection: &ServerConnection, choice: &Choice) -> String {
    let site = connection.server_name().unwrap_or("no name was asked for"); // rustls lets only DNS names through
    let version = connection.protocol_version().map_or_else(unknown, |version| format!("{version:?}"));
    let suite =
        connection.negotiated_cipher_suite().map_or_else(unknown, |suite| format!("{:?}", suite.suite()));
    let key = signature_key(connection, choice);
    format!(
        "<!doctype html>\n<title>{site}</title>\n<h1>{site}</h1>\n\
         <p>The private key of this site is not on this machine.</p>\n\
         <dl>\n<dt>Protocol version</dt><dd>{version}</dd>\n<dt>Cipher suite</dt><dd>{suite}</dd>\n\
         <dt>Signature key</dt><dd>{key}</dd>\n</dl>\n"
    )
}

fn unknown() -> String {
    "unknown".to_owned()
}

fn signature_key(connection: &ServerConnection, choice: &Choice) -> String {
    match (connection.handshake_kind(), choice.algorithm()) {
        (Some(HandshakeKind::Resumed), _) => "none needed: the session was resumed".to_owned(),
        (_, algorithm) => algorithm.map_or_else(unknown, |algorithm| format!("{algorithm:?}")),
    }
}
