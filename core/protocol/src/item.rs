//! Items: the tag-length-value triples of a body, read by a cursor that can't over-read and written with padding.

use std::net::IpAddr;

use crate::{HEADER_LEN, Header, Malformed, Tag, TooLong};

/// The bytes in front of an item's value: its tag and its length.
const ITEM_HEADER: usize = 3;

/// Frames shorter than this get a padding item.
const PAD_BELOW: usize = 1024;

/// One item of a body.
pub(crate) struct Item<'a> {
    pub(crate) tag: Tag,
    pub(crate) value: &'a [u8],
    offset: usize,
}

impl Item<'_> {
    /// The value as the single byte it has to be.
    pub(crate) fn byte(&self) -> Result<u8, Malformed> {
        match *self.value {
            [byte] => Ok(byte),
            _ => Err(self.illegal_length()),
        }
    }

    /// The value as an address of 4 or 16 bytes; an IPv4-mapped one is an IPv4 address.
    pub(crate) fn address(&self) -> Result<IpAddr, Malformed> {
        if let Ok(v4) = <[u8; 4]>::try_from(self.value) {
            return Ok(v4.into());
        }
        let v6 = <[u8; 16]>::try_from(self.value).map_err(|_| self.illegal_length())?;
        Ok(IpAddr::from(v6).to_canonical())
    }

    fn illegal_length(&self) -> Malformed {
        Malformed::Length { tag: self.tag, offset: self.offset, found: self.value.len() }
    }
}

/// The items of a body, front to back.
pub(crate) struct Items<'a> {
    rest: &'a [u8],
    offset: usize,
    seen: u64,
}

impl<'a> Items<'a> {
    pub(crate) const fn new(body: &'a [u8]) -> Self {
        Self { rest: body, offset: 0, seen: 0 }
    }

    /// The next item, `None` at the end. One or two bytes behind the last item are ignored, as the reference does.
    pub(crate) fn take(&mut self) -> Result<Option<Item<'a>>, Malformed> {
        let Some((&[tag, high, low], rest)) = self.rest.split_first_chunk::<ITEM_HEADER>() else {
            return Ok(None);
        };
        let (tag, offset) = (Tag(tag), self.offset);
        let claimed = usize::from(u16::from_be_bytes([high, low]));
        let overrun = Malformed::Overrun { tag, offset, claimed, left: rest.len() };
        let (value, rest) = rest.split_at_checked(claimed).ok_or(overrun)?;
        self.refuse_duplicate(tag)?;
        (self.rest, self.offset) = (rest, offset + ITEM_HEADER + claimed);
        Ok(Some(Item { tag, value, offset }))
    }

    /// Unknown tags may be repeated: what they mean, and how often, is a later version's to say.
    fn refuse_duplicate(&mut self, tag: Tag) -> Result<(), Malformed> {
        if tag.name().is_none() {
            return Ok(());
        }
        let bit = 1 << tag.0; // every listed tag is below 64
        if self.seen & bit != 0 {
            return Err(Malformed::Duplicate { tag, offset: self.offset });
        }
        self.seen |= bit;
        Ok(())
    }
}

/// Appends a frame to `out`: a header, the items that `fill` writes, and padding. On an error, `out` is as before.
pub(crate) fn append_frame(
    id: u32,
    out: &mut Vec<u8>,
    fill: impl FnOnce(&mut Body<'_>) -> Result<(), TooLong>,
) -> Result<(), TooLong> {
    let start = out.len();
    out.reserve(PAD_BELOW + ITEM_HEADER);
    out.extend_from_slice(&[0; HEADER_LEN]);
    let mut body = Body { out, start: start + HEADER_LEN };
    let length = fill(&mut body).and_then(|()| body.pad()).and_then(|()| body.length());
    match length {
        Ok(length) => write_header(out, start, Header::new(id, length)),
        Err(_) => out.truncate(start),
    }
    length.map(|_| ())
}

fn write_header(out: &mut [u8], start: usize, header: Header) {
    if let Some(place) = out.get_mut(start..).and_then(<[u8]>::first_chunk_mut) {
        *place = header.encode();
    }
}

/// The body of a frame that is being written.
pub(crate) struct Body<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl Body<'_> {
    /// Appends an item.
    pub(crate) fn item(&mut self, tag: Tag, value: &[u8]) -> Result<(), TooLong> {
        let length = u16::try_from(value.len()).map_err(|_| TooLong)?;
        let [high, low] = length.to_be_bytes();
        self.out.extend_from_slice(&[tag.0, high, low]);
        self.out.extend_from_slice(value);
        Ok(())
    }

    /// Appends an item if there is a value.
    pub(crate) fn optional(&mut self, tag: Tag, value: Option<&[u8]>) -> Result<(), TooLong> {
        value.map_or(Ok(()), |value| self.item(tag, value))
    }

    /// Appends an item unless its value is empty.
    pub(crate) fn non_empty(&mut self, tag: Tag, value: &[u8]) -> Result<(), TooLong> {
        self.optional(tag, Some(value).filter(|value| !value.is_empty()))
    }

    /// Appends an address; an IPv4-mapped one is sent as the IPv4 address it is.
    pub(crate) fn address(&mut self, tag: Tag, address: Option<IpAddr>) -> Result<(), TooLong> {
        match address.map(|address| address.to_canonical()) {
            None => Ok(()),
            Some(IpAddr::V4(v4)) => self.item(tag, &v4.octets()),
            Some(IpAddr::V6(v6)) => self.item(tag, &v6.octets()),
        }
    }

    /// Pads a short frame so that its length says little about its content.
    ///
    /// The frames that lack one or two bytes grow past 1,024, since a padding item has three bytes of its own: that is
    /// how the reference pads, and recorded exchanges are matched to the byte.
    fn pad(&mut self) -> Result<(), TooLong> {
        let frame = HEADER_LEN + self.out.len() - self.start;
        if frame >= PAD_BELOW {
            return Ok(());
        }
        let zeros = [0; PAD_BELOW];
        let missing = PAD_BELOW.saturating_sub(frame + ITEM_HEADER);
        self.item(Tag::PADDING, zeros.get(..missing).unwrap_or_default())
    }

    fn length(&self) -> Result<u16, TooLong> {
        u16::try_from(self.out.len() - self.start).map_err(|_| TooLong)
    }
}
