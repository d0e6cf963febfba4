//! Frames: a fixed header, then as many bytes of body as it says.

/// The length of a [`Header`] on the wire, in bytes.
pub const HEADER_LEN: usize = 8;

/// The longest body that a header can announce, in bytes.
pub const MAX_BODY: usize = u16::MAX as usize;

/// The longest frame, in bytes; a receive buffer of this size always holds a whole one.
pub const MAX_FRAME: usize = HEADER_LEN + MAX_BODY;

/// The major version that this crate sends.
pub const VERSION_MAJOR: u8 = 1;

/// The minor version that this crate sends.
pub const VERSION_MINOR: u8 = 0;

/// What precedes a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The major version; only [`VERSION_MAJOR`] has a meaning known to this crate.
    pub major: u8,
    /// The minor version; it has no influence on how a body is read.
    pub minor: u8,
    /// The length of the body, in bytes.
    pub length: u16,
    /// Chosen by the client, repeated in the answer. Clients do put several requests of one id in flight.
    pub id: u32,
}

impl Header {
    /// A header of the version that this crate sends.
    #[must_use]
    pub const fn new(id: u32, length: u16) -> Self {
        Self { major: VERSION_MAJOR, minor: VERSION_MINOR, length, id }
    }

    /// Reads a header; every eight bytes are one.
    #[must_use]
    pub const fn decode(bytes: [u8; HEADER_LEN]) -> Self {
        let [major, minor, l0, l1, i0, i1, i2, i3] = bytes;
        Self { major, minor, length: u16::from_be_bytes([l0, l1]), id: u32::from_be_bytes([i0, i1, i2, i3]) }
    }

    /// The header as it is sent.
    #[must_use]
    pub const fn encode(self) -> [u8; HEADER_LEN] {
        let [l0, l1] = self.length.to_be_bytes();
        let [i0, i1, i2, i3] = self.id.to_be_bytes();
        [self.major, self.minor, l0, l1, i0, i1, i2, i3]
    }
}

/// One frame at the front of a byte stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the frame says about itself.
    pub header: Header,
    /// The items, exactly `header.length` bytes.
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Splits the first frame off `input`; returns it and the bytes behind it.
    ///
    /// `None` means that the frame isn't complete yet, which is no error: read more, and try again.
    #[must_use]
    pub fn split(input: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (header, rest) = input.split_first_chunk()?;
        let header = Header::decode(*header);
        let (body, rest) = rest.split_at_checked(usize::from(header.length))?;
        Some((Self { header, body }, rest))
    }

    /// The bytes that the whole frame takes, header included.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a frame always has a header")]
    pub const fn len(&self) -> usize {
        HEADER_LEN + self.body.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_fields_are_big_endian() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8];
        let header = Header { major: 1, minor: 2, length: 0x0304, id: 0x0506_0708 };
        assert_eq!(Header::decode(bytes), header);
        assert_eq!(header.encode(), bytes);
    }

    #[test]
    fn every_prefix_of_a_frame_is_incomplete() {
        let whole = [1, 0, 0, 2, 0, 0, 0, 7, b'a', b'b'];
        for end in 0..whole.len() {
            assert_eq!(Frame::split(&whole[..end]), None, "{end} bytes");
        }
        assert!(Frame::split(&whole).is_some());
    }

    #[test]
    fn splits_frames_that_arrived_together() {
        let input = [1, 0, 0, 1, 0, 0, 0, 7, b'a', 1, 0, 0, 0, 0, 0, 0, 8];
        let (first, rest) = Frame::split(&input).unwrap();
        let (second, end) = Frame::split(rest).unwrap();
        assert_eq!((first.header.id, first.body, first.len()), (7, &b"a"[..], 9));
        assert_eq!((second.header.id, second.body, second.len()), (8, &b""[..], 8));
        assert!(end.is_empty());
    }

    #[test]
    fn the_longest_frame_is_read() {
        let mut input = Header::new(1, u16::MAX).encode().to_vec();
        input.resize(MAX_FRAME, 0);
        let (frame, rest) = Frame::split(&input).unwrap();
        assert_eq!((frame.body.len(), rest.len()), (MAX_BODY, 0));
    }
}
