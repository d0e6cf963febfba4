//! Requests: an operation, its input, the key it is for, and on whose behalf.

use std::net::IpAddr;

use crate::item::{Item, Items, append_frame};
use crate::{ComplianceRegion, Digest, Malformed, Opcode, Ski, Tag, TooLong};

/// A request, borrowing from the body it was read from.
///
/// Write one with `Request { opcode, payload, ski, ..Request::default() }`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request<'a> {
    /// What is to be done; 0, which is no operation, if the request doesn't say.
    pub opcode: Opcode,
    /// The input of the operation; empty if there is none.
    pub payload: &'a [u8],
    /// Further input of the operation; empty if there is none.
    pub extra: &'a [u8],
    /// The key. `None` also if the item had a wrong length or was all zeros, both of which name no key.
    pub ski: Option<Ski>,
    /// The legacy name of the key; `None` as for the SKI.
    pub digest: Option<Digest>,
    /// The address of the terminator's client.
    pub client_ip: Option<IpAddr>,
    /// The address that the terminator's client connected to.
    pub server_ip: Option<IpAddr>,
    /// The server name that the terminator's client asked for; not necessarily a name, nor text.
    pub sni: Option<&'a [u8]>,
    /// The sender's own name of the certificate.
    pub cert_id: Option<&'a [u8]>,
    /// The function that [`Opcode::CUSTOM`] calls.
    pub custom_function: Option<&'a [u8]>,
    /// A Jaeger span, binary or text.
    pub jaeger_span: Option<&'a [u8]>,
    /// The context of the request: a JSON object, or what a client takes for one.
    pub context: Option<&'a [u8]>,
    /// Where the operation may take place.
    pub compliance_region: Option<ComplianceRegion>,
}

impl<'a> Request<'a> {
    /// Reads the body of a frame.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if an item runs past the end, a known tag occurs twice (padding too), or an opcode, an address or
    /// a compliance region has an illegal length. Unknown tags, and one or two bytes behind the last item, are ignored.
    pub fn decode(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut request = Self::default();
        let mut items = Items::new(body);
        while let Some(item) = items.take()? {
            request.apply(&item)?;
        }
        Ok(request)
    }

    /// Appends the request to `out` as a frame, padded, in the order of items that the reference client uses.
    ///
    /// An empty payload or extra, and an all-zero SKI or digest, aren't sent: receivers take them for absent.
    ///
    /// # Errors
    ///
    /// [`TooLong`] if the items don't fit a body; `out` is left as it was.
    pub fn encode(&self, id: u32, out: &mut Vec<u8>) -> Result<(), TooLong> {
        append_frame(id, out, |body| {
            body.item(Tag::OPCODE, &[self.opcode.0])?;
            body.non_empty(Tag::PAYLOAD, self.payload)?;
            body.non_empty(Tag::EXTRA, self.extra)?;
            body.optional(Tag::SKI, self.ski.as_ref().filter(|ski| !ski.is_zero()).map(|ski| &ski.0[..]))?;
            body.optional(Tag::DIGEST, self.digest.as_ref().filter(|it| !it.is_zero()).map(|it| &it.0[..]))?;
            body.address(Tag::CLIENT_IP, self.client_ip)?;
            body.address(Tag::SERVER_IP, self.server_ip)?;
            body.optional(Tag::SNI, self.sni)?;
            body.optional(Tag::CERT_ID, self.cert_id)?;
            body.optional(Tag::CUSTOM_FUNCTION, self.custom_function)?;
            body.optional(Tag::JAEGER_SPAN, self.jaeger_span)?;
            body.optional(Tag::REQUEST_CONTEXT, self.context)?;
            body.optional(
                Tag::COMPLIANCE_REGION,
                self.compliance_region.as_ref().map(|region| std::slice::from_ref(&region.0)),
            )
        })
    }

    fn apply(&mut self, item: &Item<'a>) -> Result<(), Malformed> {
        match item.tag {
            Tag::OPCODE => self.opcode = Opcode(item.byte()?),
            Tag::PAYLOAD => self.payload = item.value,
            Tag::EXTRA => self.extra = item.value,
            Tag::SKI => self.ski = item.value.try_into().ok().map(Ski).filter(|ski| !ski.is_zero()),
            Tag::DIGEST => self.digest = item.value.try_into().ok().map(Digest).filter(|it| !it.is_zero()),
            Tag::CLIENT_IP => self.client_ip = Some(item.address()?),
            Tag::SERVER_IP => self.server_ip = Some(item.address()?),
            Tag::SNI => self.sni = Some(item.value),
            Tag::CERT_ID => self.cert_id = Some(item.value),
            Tag::CUSTOM_FUNCTION => self.custom_function = Some(item.value),
            Tag::JAEGER_SPAN => self.jaeger_span = Some(item.value),
            Tag::REQUEST_CONTEXT => self.context = Some(item.value),
            Tag::COMPLIANCE_REGION => self.compliance_region = Some(ComplianceRegion(item.byte()?)),
            _ => {}
        }
        Ok(())
    }
}
