//! What is decided about a query before it is parsed.
//!
//! A response is never answered: two servers would answer each other for ever. What is no query for
//! exactly one name is answered from the header alone (RFC 8906, RFC 9619), so that no count or
//! pointer a stranger wrote is followed further than this.

const HEADER: usize = 12;

/// What to do with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Screened {
    /// Not to be answered, and why.
    Drop(&'static str),
    /// To be answered with this header.
    Reply([u8; HEADER], Refusal),
    /// A query for one name, well formed so far.
    Pass,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    FormErr = 1,
    NotImp = 4,
}

pub(crate) fn screen(message: &[u8]) -> Screened {
    let Some((header, rest)) = message.split_first_chunk::<HEADER>() else {
        return Screened::Drop("short");
    };
    if header[2] & 0x80 != 0 {
        return Screened::Drop("response");
    }
    if header[2] & 0x78 != 0 {
        return refuse(header, Refusal::NotImp);
    }
    if header[4..6] != [0, 1] || !starts_with_question(rest) {
        return refuse(header, Refusal::FormErr);
    }
    Screened::Pass
}

/// The refusal of a message that passed, but cannot be parsed.
pub(crate) fn malformed(message: &[u8]) -> Screened {
    match message.first_chunk() {
        Some(header) => refuse(header, Refusal::FormErr),
        None => Screened::Drop("short"),
    }
}

/// A name without compression pointers, which have nothing to point to yet, then type and class.
fn starts_with_question(mut rest: &[u8]) -> bool {
    let mut name = 0;
    loop {
        let Some((&length, after)) = rest.split_first() else {
            return false;
        };
        let length = usize::from(length);
        name += 1 + length;
        if length > 63 || name > 255 || after.len() < length {
            return false;
        }
        rest = &after[length..];
        if length == 0 {
            return rest.len() >= 4;
        }
    }
}

/// Repeats id, opcode and RD; says nothing else.
fn refuse(header: &[u8; HEADER], refusal: Refusal) -> Screened {
    let mut reply = [0; HEADER];
    reply[..2].copy_from_slice(&header[..2]);
    reply[2] = 0x80 | (header[2] & 0x79);
    reply[3] = refusal as u8;
    Screened::Reply(reply, refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &[u8] =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x00\x00\x01\x00\x01";

    fn changed(at: usize, byte: u8) -> Vec<u8> {
        let mut query = QUERY.to_vec();
        query[at] = byte;
        query
    }

    fn code(message: &[u8]) -> Option<(u8, u8)> {
        match screen(message) {
            Screened::Reply(reply, _) => {
                assert_eq!(reply[..2], message[..2], "the id");
                assert_eq!(reply[4..], [0; 8], "no records");
                Some((reply[2], reply[3]))
            }
            _ => None,
        }
    }

    #[test]
    fn queries_pass_and_responses_are_dropped() {
        assert_eq!(screen(QUERY), Screened::Pass);
        assert_eq!(screen(&changed(2, 0x81)), Screened::Drop("response"));
        for length in 0..HEADER {
            assert_eq!(screen(&QUERY[..length]), Screened::Drop("short"));
        }
    }

    #[test]
    fn what_is_no_query_for_one_name_is_refused() {
        // Every opcode but QUERY, repeated with RD.
        for opcode in 1..16 {
            let message = changed(2, (opcode << 3) | 1);
            assert_eq!(code(&message), Some((0x81 | (opcode << 3), 4)));
        }
        let form_err = Some((0x81, 1));
        assert_eq!(code(&changed(5, 0)), form_err, "no question");
        assert_eq!(code(&changed(5, 2)), form_err, "two questions");
        assert_eq!(code(&changed(4, 0xff)), form_err, "65281 questions");
        assert_eq!(code(&changed(12, 0xc0)), form_err, "a pointer");
        assert_eq!(code(&changed(12, 0x40)), form_err, "a label type of old");
        for length in HEADER..QUERY.len() {
            assert_eq!(code(&QUERY[..length]), form_err, "cut to {length}");
        }
        let mut long = QUERY[..HEADER].to_vec();
        for _ in 0..5 {
            long.push(63);
            long.extend([b'a'; 63]);
        }
        long.extend([0, 0, 1, 0, 1]);
        assert_eq!(code(&long), form_err, "a name of more than 255 bytes");
    }
}
