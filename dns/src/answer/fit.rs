//! Making an answer fit the transport.
//!
//! What goes first, until the rest fits: node metadata, then the authority section, then answers
//! from the end, each with the addresses of its target; over a stream the addresses alone, before
//! any answer goes. Whether something fits is found by encoding
//! it as the server will: how far names compress is the encoder's business. That is done only for
//! answers that might not fit with no name compressed, and stops at the limit. The most common answer,
//! nothing but addresses of the asked name, is added up instead.

use std::collections::HashSet;

use hickory_server::proto::{
    ProtoError,
    op::{EmitAndCount, MessageType, Metadata, OpCode, emit_message_parts},
    rr::{Name, RData, Record},
    serialize::binary::{BinEncodable as _, BinEncoder},
};

use super::{Answer, Draft, Item, Question, Transport};
use crate::settings::Zone;

pub(super) fn fit(mut draft: Draft, zone: &Zone, question: &Question<'_>) -> Answer {
    let found = draft.items.len();
    if question.limits.transport == Transport::PlainUdp
        && let Some(limit) = zone.settings.udp_answer_limit
    {
        draft.items.truncate(limit);
    }
    let choice = choose(&draft, question);
    let additionals = additionals(&draft, choice).cloned().collect();
    if !choice.authority {
        draft.authority.clear();
    }
    draft.items.truncate(choice.answers);
    Answer {
        code: draft.code,
        authoritative: draft.authoritative,
        truncated: choice.answers < found && zone.settings.enable_truncate,
        answers: draft.items.into_iter().map(|item| item.record).collect(),
        authority: draft.authority,
        additionals,
    }
}

/// How much of a draft is told.
#[derive(Clone, Copy)]
struct Choice {
    answers: usize,
    /// So many of the first answers come with what goes along with them.
    accompanied: usize,
    notes: bool,
    authority: bool,
}

fn choose(draft: &Draft, question: &Question<'_>) -> Choice {
    let mut choice = Choice {
        answers: draft.items.len(),
        accompanied: draft.items.len(),
        notes: true,
        authority: true,
    };
    let size = usize::from(question.limits.size);
    if let Some(answers) = addresses_that_fit(draft, question) {
        choice.answers = answers;
        choice.accompanied = answers;
        return choice;
    }
    if uncompressed(draft, question) <= size || measure(draft, choice, question).is_whole {
        return choice;
    }
    if draft.items.iter().any(|item| !item.notes.is_empty()) {
        choice.notes = false;
        if measure(draft, choice, question).is_whole {
            return choice;
        }
    }
    if !draft.authority.is_empty() && !draft.items.is_empty() {
        choice.authority = false;
        if measure(draft, choice, question).is_whole {
            return choice;
        }
    }
    let bare = Choice {
        accompanied: 0,
        ..choice
    };
    let answers = measure(draft, bare, question).answers;
    let accompanied = |accompanied: usize| Choice {
        answers: match question.limits.transport {
            Transport::Stream => answers,
            Transport::PlainUdp | Transport::EdnsUdp => accompanied,
        },
        accompanied,
        ..choice
    };
    if additionals(draft, accompanied(answers)).next().is_none() {
        return accompanied(answers);
    }
    // The largest number that fits; more of them never take less.
    let (mut low, mut high) = (0, answers);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if measure(draft, accompanied(middle), question).is_whole {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    let choice = accompanied(low);
    Choice {
        // One answer without the addresses that go with it is worth more than none.
        answers: choice.answers.max(answers.min(1)),
        ..choice
    }
}

/// The additional section: what goes along with each answer, told once for each name, in the order
/// of the answers.
fn additionals(draft: &Draft, choice: Choice) -> impl Iterator<Item = &Record> {
    let mut told = HashSet::new();
    let items = &draft.items[..choice.accompanied];
    let along = items.iter().filter(move |item| {
        let mut both = item.addresses.iter().chain(&item.notes);
        both.next()
            .is_some_and(|record| told.insert(record.name.clone()))
    });
    let records = along.flat_map(move |item| {
        let notes = item.notes.iter().filter(move |_| choice.notes);
        item.addresses.iter().chain(notes)
    });
    let all = choice.accompanied == draft.items.len();
    records.chain(draft.extras.iter().filter(move |_| all))
}

/// How many answers fit, for a draft that is nothing but addresses of the asked name. `None` for any
/// other draft.
fn addresses_that_fit(draft: &Draft, question: &Question<'_>) -> Option<usize> {
    if !draft.authority.is_empty() || !draft.extras.is_empty() || question.name.is_root() {
        return None;
    }
    let mut size = HEADER + name_size(question.name) + QUESTION_FIXED;
    let mut fitting = 0;
    for (at, item) in draft.items.iter().enumerate() {
        let data = match &item.record.data {
            RData::A(_) => 4,
            RData::AAAA(_) => 16,
            _ => return None,
        };
        let is_bare = item.addresses.is_empty() && item.notes.is_empty();
        if !is_bare || !item.record.name.eq_case(question.name) {
            return None;
        }
        // The first one spells the name out: the question is no target for compression.
        let name = match at {
            1..MOST_COMPRESSED => POINTER,
            _ => name_size(question.name),
        };
        size += name + RECORD_FIXED + data;
        // What comes behind one that does not fit is left out as well.
        if size <= usize::from(question.limits.size) {
            fitting += 1;
        }
    }
    Some(fitting)
}

/// An upper bound for the size of the whole draft.
fn uncompressed(draft: &Draft, question: &Question<'_>) -> usize {
    let items = draft.items.iter().map(|item: &Item| {
        let along = item.addresses.iter().chain(&item.notes);
        record_size(&item.record) + along.map(record_size).sum::<usize>()
    });
    let rest = draft.authority.iter().chain(&draft.extras);
    HEADER
        + name_size(question.name)
        + QUESTION_FIXED
        + items.sum::<usize>()
        + rest.map(record_size).sum::<usize>()
}

const HEADER: usize = 12;
/// A name that was told before (RFC 1035, section 4.1.4).
const POINTER: usize = 2;
/// The encoder compresses so many names of a message.
const MOST_COMPRESSED: usize = 120;
/// Type and class of a question.
const QUESTION_FIXED: usize = 4;
/// Type, class, TTL and length of a record.
const RECORD_FIXED: usize = 10;

/// With the root label, which `Name::len` leaves out.
fn name_size(name: &Name) -> usize {
    name.len() + 1
}

fn record_size(record: &Record) -> usize {
    let data = match &record.data {
        RData::A(_) => 4,
        RData::AAAA(_) => 16,
        RData::SRV(srv) => 6 + name_size(&srv.target),
        RData::CNAME(name) => name_size(name),
        RData::NS(name) => name_size(name),
        RData::PTR(name) => name_size(name),
        RData::SOA(soa) => 20 + name_size(&soa.mname) + name_size(&soa.rname),
        RData::TXT(txt) => txt.txt_data.iter().map(|text| 1 + text.len()).sum(),
        // No other type is answered; were one, it would be measured.
        _ => usize::from(u16::MAX),
    };
    name_size(&record.name) + RECORD_FIXED + data
}

struct Measure {
    is_whole: bool,
    /// How many records of the answer section fit.
    answers: usize,
}

fn measure(draft: &Draft, choice: Choice, question: &Question<'_>) -> Measure {
    let nothing = Measure {
        is_whole: false,
        answers: 0,
    };
    let mut bytes = Vec::with_capacity(usize::from(question.limits.size.min(4096)));
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(question.limits.size);
    let authority = draft.authority.iter().filter(|_| choice.authority);
    let header = emit_message_parts(
        &Metadata::new(0, MessageType::Response, OpCode::Query),
        &mut AsReceived(question),
        &mut draft.items[..choice.answers]
            .iter()
            .map(|item| &item.record),
        &mut authority.into_iter(),
        &mut additionals(draft, choice),
        None,
        None,
        &mut encoder,
    );
    header.map_or(nothing, |header| Measure {
        is_whole: !header.metadata.truncation,
        answers: usize::from(header.counts.answers),
    })
}

/// The question as the server repeats it: byte for byte, so that its labels are no targets for
/// compression. Must encode as hickory's `Queries` do, or the measure would be wrong.
struct AsReceived<'a>(&'a Question<'a>);

impl EmitAndCount for AsReceived<'_> {
    fn emit(&mut self, encoder: &mut BinEncoder<'_>) -> Result<usize, ProtoError> {
        let start = encoder.offset();
        let Question { name, kind, .. } = self.0;
        for label in name.iter() {
            encoder.emit_character_data(label)?;
        }
        encoder.emit(0)?;
        kind.emit(encoder)?;
        encoder.emit_u16(1)?;
        encoder.store_label_pointer(start, encoder.offset());
        Ok(1)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use hickory_server::proto::rr::RecordType;

    use super::*;
    use crate::answer::{Limits, record};

    /// What hickory makes of the first `count` answers, without any limit.
    fn encoded(draft: &Draft, count: usize, question: &Question<'_>) -> usize {
        let mut bytes = Vec::new();
        let header = emit_message_parts(
            &Metadata::new(0, MessageType::Response, OpCode::Query),
            &mut AsReceived(question),
            &mut draft.items[..count].iter().map(|item| &item.record),
            &mut std::iter::empty::<&Record>(),
            &mut std::iter::empty::<&Record>(),
            None,
            None,
            &mut BinEncoder::new(&mut bytes),
        );
        assert!(!header.unwrap().metadata.truncation);
        bytes.len()
    }

    #[test]
    fn addresses_are_added_up_to_what_the_encoder_makes_of_them() {
        const COUNT: u8 = 150;
        let long = format!("{0}.{0}.service.consul.", "a".repeat(60));
        for name in ["web.service.consul.", "A.b.Node.dc1.consul.", "x.", &long] {
            let name = Name::from_ascii(name).unwrap();
            for every in 1..4 {
                let address = |n: u8| match n % every == 1 {
                    true => IpAddr::from([0xfd, 0, 0, 0, 0, 0, 0, n.into()]),
                    false => IpAddr::from([10, 0, 0, n]),
                };
                let item = |n: u8| record::address(&name, 0, address(n)).into();
                let draft = Draft::of((0..COUNT).map(item).collect());
                let question = |size: usize| Question {
                    name: &name,
                    kind: RecordType::ANY,
                    limits: Limits {
                        size: u16::try_from(size).unwrap(),
                        transport: Transport::Stream,
                    },
                    seed: 0,
                    now: 0,
                };
                for count in 1..=usize::from(COUNT) {
                    let size = encoded(&draft, count, &question(0));
                    let fits = |size| addresses_that_fit(&draft, &question(size));
                    assert_eq!(fits(size), Some(count), "{name} in {size}");
                    assert_eq!(fits(size - 1), Some(count - 1), "{name} in {size} - 1");
                }
            }
        }
    }
}
