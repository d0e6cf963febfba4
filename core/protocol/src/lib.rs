//! The Keyless SSL wire protocol: bytes to requests and back.
