//! Ports of this machine.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use crate::failure::{Failure, Result};

/// Two ports that nobody listens on. Somebody could take them before the key server does, which then says so.
pub(crate) fn free_addresses() -> Result<[SocketAddr; 2]> {
    let failure = |error| Failure::new(format!("cannot find a free port: {error}"));
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failure);
    let (one, other) = (listen()?, listen()?);
    Ok([one.local_addr().map_err(failure)?, other.local_addr().map_err(failure)?])
}
