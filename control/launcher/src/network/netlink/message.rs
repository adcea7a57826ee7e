//! Bytes of messages: a header of 16 bytes, a header of the family, and attributes aligned to four bytes.

/// Says that an attribute holds attributes.
const NESTED: u16 = 0x8000;
/// The type of an attribute without its flags.
const TYPE: u16 = 0x3fff;
const HEADER: usize = 16;

/// One request under construction.
#[derive(Clone, Debug)]
pub(in crate::network) struct Message {
    /// What it is for, for a person: "create the bridge wharf0".
    pub(super) what: String,
    kind: u16,
    flags: u16,
    fields: Fields,
}

/// The part of a message behind its header, or the inside of a nested attribute.
#[derive(Clone, Debug, Default)]
pub(in crate::network) struct Fields(Vec<u8>);

impl Message {
    /// `family` is the fixed header of the family, such as an `ifinfomsg`.
    pub(in crate::network) fn new(
        what: impl Into<String>,
        kind: u16,
        flags: u16,
        family: &[u8],
        fields: impl FnOnce(&mut Fields),
    ) -> Message {
        let mut inside = Fields(family.to_vec());
        fields(&mut inside);
        Message {
            what: what.into(),
            kind,
            flags,
            fields: inside,
        }
    }

    pub(in crate::network) fn with_flags(mut self, flags: u16) -> Message {
        self.flags |= flags;
        self
    }

    pub(in crate::network) fn encoded_len(&self) -> usize {
        aligned(HEADER + self.fields.0.len())
    }

    /// Appends the message to a buffer that is sent as one datagram.
    pub(in crate::network) fn encode(&self, sequence: u32, to: &mut Vec<u8>) {
        let length = HEADER + self.fields.0.len();
        to.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
        to.extend_from_slice(&self.kind.to_ne_bytes());
        to.extend_from_slice(&self.flags.to_ne_bytes());
        to.extend_from_slice(&sequence.to_ne_bytes());
        // The port of the sender: the kernel knows it.
        to.extend_from_slice(&0u32.to_ne_bytes());
        to.extend_from_slice(&self.fields.0);
        pad(to);
    }
}

impl Fields {
    /// Bytes without an attribute header: the fixed head inside an attribute such as `VETH_INFO_PEER`.
    pub(in crate::network) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        pad(&mut self.0);
    }

    pub(in crate::network) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.head(kind, value.len());
        self.0.extend_from_slice(value);
        pad(&mut self.0);
    }

    /// In the byte order of the machine, as the routing family has them.
    pub(in crate::network) fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// In network byte order, as the netfilter family has them.
    pub(in crate::network) fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Text with its final zero.
    pub(in crate::network) fn text(&mut self, kind: u16, value: &str) {
        self.head(kind, value.len() + 1);
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
        pad(&mut self.0);
    }

    pub(in crate::network) fn nested(&mut self, kind: u16, inside: impl FnOnce(&mut Fields)) {
        let mut fields = Fields::default();
        inside(&mut fields);
        self.bytes(kind | NESTED, &fields.0);
    }

    fn head(&mut self, kind: u16, length: usize) {
        // No attribute of ours comes near 64 KiB: names, addresses and rules of some hundred bytes.
        let length = u16::try_from(length + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
    }
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(aligned(bytes.len()), 0);
}

// === reading ===

/// A message that was received, without its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received<'a> {
    pub(super) kind: u16,
    pub(super) sequence: u32,
    pub(super) payload: &'a [u8],
}

/// The messages of one datagram; ends at the first that is not whole.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = u32_of(bytes.get(..4)?)? as usize;
        let message = bytes.get(..length).filter(|_| length >= HEADER)?;
        let received = Received {
            kind: u16::from_ne_bytes([message[4], message[5]]),
            sequence: u32_of(&message[8..12])?,
            payload: &message[HEADER..],
        };
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some(received)
    })
}

/// Types and values of attributes; ends at the first that is not whole.
pub(in crate::network) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & TYPE;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A number of four bytes, in the byte order of the machine.
pub(in crate::network) fn u32_of(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_read_again() {
        let message = Message::new("a test", 16, 5, &[1, 2, 3, 4], |fields| {
            fields.text(3, "eth0");
            fields.nested(18, |inside| inside.u32(1, 7));
        });
        let mut bytes = Vec::new();
        message.encode(9, &mut bytes);
        assert_eq!(bytes.len(), message.encoded_len());
        message.encode(10, &mut bytes);
        let read: Vec<_> = messages(&bytes).collect();
        assert_eq!(read.len(), 2);
        assert_eq!(
            (read[0].kind, read[0].sequence, read[1].sequence),
            (16, 9, 10)
        );
        let fields: Vec<_> = attributes(&read[0].payload[4..]).collect();
        assert_eq!(fields[0], (3, &b"eth0\0"[..]));
        assert_eq!(fields[1].0, 18, "without the flag of nesting");
        let inside: Vec<_> = attributes(fields[1].1).collect();
        assert_eq!(u32_of(inside[0].1), Some(7));
    }

    #[test]
    fn what_is_cut_off_ends_the_reading() {
        let message = Message::new("a test", 16, 5, &[0; 4], |fields| fields.u32(1, 7));
        let mut bytes = Vec::new();
        message.encode(1, &mut bytes);
        for end in 0..bytes.len() {
            assert_eq!(messages(&bytes[..end]).count(), 0, "{end}");
        }
        // A length below that of its own header must not read on forever.
        for length in 0u32..16 {
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(messages(&bytes).count(), 0, "{length}");
        }
        for length in 0u16..4 {
            let mut attribute = [0, 0, 1, 0, 9, 9, 9, 9];
            attribute[..2].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(attributes(&attribute).count(), 0, "{length}");
        }
    }
}
