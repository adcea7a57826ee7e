//! Messages and expressions of nf_tables (`linux/netfilter/nf_tables.h`).

use std::net::Ipv4Addr;

use super::super::netlink::{Fields, Message, attributes, flag};

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
/// `NFNL_SUBSYS_NFTABLES << 8`
const NFTABLES: u16 = 10 << 8;

const NFT_MSG_NEWTABLE: u16 = NFTABLES;
const NFT_MSG_GETTABLE: u16 = NFTABLES | 1;
const NFT_MSG_DELTABLE: u16 = NFTABLES | 2;
const NFT_MSG_NEWCHAIN: u16 = NFTABLES | 3;
const NFT_MSG_NEWRULE: u16 = NFTABLES | 6;
const NFT_MSG_GETRULE: u16 = NFTABLES | 7;
const NFT_MSG_DELRULE: u16 = NFTABLES | 8;

/// The family `ip`: the subnet of a bridge is one of IPv4.
const NFPROTO_IPV4: u8 = 2;

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;

const NF_ACCEPT: u32 = 1;
const NF_DROP: u32 = 0;
const NFT_JUMP: u32 = -3i32 as u32;

/// Where verdicts go.
const REG_VERDICT: u32 = 0;
/// The two registers that are used, of 16 bytes each.
pub(super) const REG_1: u32 = 1;
pub(super) const REG_2: u32 = 2;

/// The type of `nft`'s comments among the user data of a rule.
const COMMENT: u8 = 0;

/// What kind of chain, and where packets enter it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hook {
    pub(super) kind: &'static str,
    /// `NF_INET_*`
    pub(super) number: u32,
    pub(super) priority: i32,
}

impl Hook {
    pub(super) const PREROUTING: u32 = 0;
    pub(super) const FORWARD: u32 = 2;
    pub(super) const OUTPUT: u32 = 3;
    pub(super) const POSTROUTING: u32 = 4;
}

/// A rule: expressions, and the comment that says whose it is.
#[derive(Clone, Debug, Default)]
pub(super) struct Rule {
    expressions: Fields,
    comment: Option<String>,
}

/// An `nfgenmsg`.
fn family(number: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [number, 0, high, low]
}

// === messages ===

pub(super) fn begin() -> Message {
    Message::new(
        "begin a transaction of nf_tables",
        NFNL_MSG_BATCH_BEGIN,
        flag::REQUEST,
        &family(0, 10),
        |_| {},
    )
}

pub(super) fn end() -> Message {
    Message::new(
        "commit a transaction of nf_tables",
        NFNL_MSG_BATCH_END,
        flag::REQUEST,
        &family(0, 10),
        |_| {},
    )
}

pub(super) fn add_table(table: &str) -> Message {
    Message::new(
        format!("add the nf_tables table {table}"),
        NFT_MSG_NEWTABLE,
        flag::REQUEST,
        &family(NFPROTO_IPV4, 0),
        |fields| {
            fields.text(NFTA_TABLE_NAME, table);
            fields.be32(NFTA_TABLE_FLAGS, 0);
        },
    )
}

pub(super) fn delete_table(table: &str) -> Message {
    Message::new(
        format!("remove the nf_tables table {table}"),
        NFT_MSG_DELTABLE,
        flag::REQUEST,
        &family(NFPROTO_IPV4, 0),
        |fields| fields.text(NFTA_TABLE_NAME, table),
    )
}

pub(super) fn add_chain(table: &str, chain: &str, hook: Option<Hook>) -> Message {
    Message::new(
        format!("add the chain {chain} to the nf_tables table {table}"),
        NFT_MSG_NEWCHAIN,
        flag::REQUEST | flag::CREATE,
        &family(NFPROTO_IPV4, 0),
        |fields| {
            fields.text(NFTA_CHAIN_TABLE, table);
            fields.text(NFTA_CHAIN_NAME, chain);
            if let Some(hook) = hook {
                fields.text(NFTA_CHAIN_TYPE, hook.kind);
                fields.be32(NFTA_CHAIN_POLICY, NF_ACCEPT);
                fields.nested(NFTA_CHAIN_HOOK, |inside| {
                    inside.be32(NFTA_HOOK_HOOKNUM, hook.number);
                    inside.be32(NFTA_HOOK_PRIORITY, hook.priority.cast_unsigned());
                });
            }
        },
    )
}

pub(super) fn add_rule(table: &str, chain: &str, rule: &Rule) -> Message {
    Message::new(
        format!("add a rule to the chain {chain} of the nf_tables table {table}"),
        NFT_MSG_NEWRULE,
        flag::REQUEST | flag::CREATE | flag::APPEND,
        &family(NFPROTO_IPV4, 0),
        |fields| {
            fields.text(NFTA_RULE_TABLE, table);
            fields.text(NFTA_RULE_CHAIN, chain);
            fields.nested(NFTA_RULE_EXPRESSIONS, |inside| {
                *inside = rule.expressions.clone()
            });
            if let Some(comment) = &rule.comment {
                fields.bytes(NFTA_RULE_USERDATA, &user_data(comment));
            }
        },
    )
}

pub(super) fn delete_rule(table: &str, chain: &str, handle: u64) -> Message {
    Message::new(
        format!("remove rule {handle} from the chain {chain} of the nf_tables table {table}"),
        NFT_MSG_DELRULE,
        flag::REQUEST,
        &family(NFPROTO_IPV4, 0),
        |fields| {
            fields.text(NFTA_RULE_TABLE, table);
            fields.text(NFTA_RULE_CHAIN, chain);
            fields.bytes(NFTA_RULE_HANDLE, &handle.to_be_bytes());
        },
    )
}

pub(super) fn list_rules(table: &str, chain: &str) -> Message {
    Message::new(
        format!("list the rules of the nf_tables table {table}"),
        NFT_MSG_GETRULE,
        flag::DUMP,
        &family(NFPROTO_IPV4, 0),
        |fields| {
            fields.text(NFTA_RULE_TABLE, table);
            fields.text(NFTA_RULE_CHAIN, chain);
        },
    )
}

pub(super) fn list_tables() -> Message {
    Message::new(
        "list the tables of nf_tables",
        NFT_MSG_GETTABLE,
        flag::DUMP,
        &family(NFPROTO_IPV4, 0),
        |_| {},
    )
}

/// The handle and the comment of a rule; `None` if it has no comment.
pub(super) fn listed_rule(payload: &[u8]) -> Option<(u64, String)> {
    let (mut handle, mut comment) = (None, None);
    for (kind, value) in attributes(payload.get(4..)?) {
        match kind {
            NFTA_RULE_HANDLE => handle = Some(u64::from_be_bytes(value.try_into().ok()?)),
            NFTA_RULE_USERDATA => comment = comment_of(value),
            _ => {}
        }
    }
    Some((handle?, comment?))
}

/// The name of a table.
pub(super) fn listed_table(payload: &[u8]) -> Option<String> {
    let mut all = attributes(payload.get(4..)?);
    let (_, name) = all.find(|(kind, _)| *kind == NFTA_TABLE_NAME)?;
    Some(String::from_utf8_lossy(name.strip_suffix(b"\0")?).into_owned())
}

/// Type, length and value, as `nft` reads and writes it: a comment ends with a zero that counts.
fn user_data(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
    let mut bytes = vec![COMMENT, length];
    bytes.extend_from_slice(&comment.as_bytes()[..usize::from(length) - 1]);
    bytes.push(0);
    bytes
}

fn comment_of(mut bytes: &[u8]) -> Option<String> {
    loop {
        let [kind, length, rest @ ..] = bytes else {
            return None;
        };
        let value = rest.get(..usize::from(*length))?;
        if *kind == COMMENT {
            let text = value.strip_suffix(b"\0").unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        bytes = &rest[value.len()..];
    }
}

// === expressions ===

/// What a packet's meta data are asked for (`NFT_META_*`).
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum Meta {
    InputInterface = 6,
    OutputInterface = 7,
    Protocol = 16,
}

/// What the connection is asked for (`NFT_CT_*`), each a set of bits.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum Connection {
    State = 0,
    Status = 2,
}

/// The headers of a packet (`NFT_PAYLOAD_*`).
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum Header {
    Network = 1,
    Transport = 2,
}

/// Comparisons (`NFT_CMP_*`).
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum Compare {
    Equal = 0,
    Unequal = 1,
}

impl Rule {
    fn push(mut self, name: &str, data: impl FnOnce(&mut Fields)) -> Rule {
        self.expressions.nested(NFTA_LIST_ELEM, |inside| {
            inside.text(NFTA_EXPR_NAME, name);
            inside.nested(NFTA_EXPR_DATA, data);
        });
        self
    }

    pub(super) fn comment(mut self, text: &str) -> Rule {
        self.comment = Some(text.to_owned());
        self
    }

    /// Loads something about the packet into register 1.
    pub(super) fn meta(self, key: Meta) -> Rule {
        self.push("meta", |data| {
            data.be32(2, key as u32);
            data.be32(1, REG_1);
        })
    }

    pub(super) fn connection(self, key: Connection) -> Rule {
        self.push("ct", |data| {
            data.be32(2, key as u32);
            data.be32(1, REG_1);
        })
    }

    /// The kind of address that the packet goes to: that of this machine, of another, of many.
    pub(super) fn destination_type(self) -> Rule {
        const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
        const NFTA_FIB_F_DADDR: u32 = 2;
        self.push("fib", |data| {
            data.be32(3, NFTA_FIB_F_DADDR);
            data.be32(2, NFT_FIB_RESULT_ADDRTYPE);
            data.be32(1, REG_1);
        })
    }

    pub(super) fn payload(self, header: Header, offset: u32, length: u32) -> Rule {
        self.push("payload", |data| {
            data.be32(1, REG_1);
            data.be32(2, header as u32);
            data.be32(3, offset);
            data.be32(4, length);
        })
    }

    pub(super) fn compare(self, how: Compare, value: &[u8]) -> Rule {
        self.push("cmp", |data| {
            data.be32(1, REG_1);
            data.be32(2, how as u32);
            data.nested(3, |inside| inside.bytes(NFTA_DATA_VALUE, value));
        })
    }

    /// Keeps the bits of register 1 that `mask` has.
    pub(super) fn mask(self, mask: [u8; 4]) -> Rule {
        self.push("bitwise", |data| {
            data.be32(1, REG_1);
            data.be32(2, REG_1);
            data.be32(3, 4);
            data.nested(4, |inside| inside.bytes(NFTA_DATA_VALUE, &mask));
            data.nested(5, |inside| inside.bytes(NFTA_DATA_VALUE, &[0; 4]));
        })
    }

    fn immediate(self, register: u32, value: impl FnOnce(&mut Fields)) -> Rule {
        self.push("immediate", |data| {
            data.be32(1, register);
            data.nested(2, value);
        })
    }

    pub(super) fn accept(self) -> Rule {
        self.verdict(NF_ACCEPT, None)
    }

    pub(super) fn drop(self) -> Rule {
        self.verdict(NF_DROP, None)
    }

    pub(super) fn jump(self, chain: &str) -> Rule {
        self.verdict(NFT_JUMP, Some(chain))
    }

    fn verdict(self, code: u32, chain: Option<&str>) -> Rule {
        self.immediate(REG_VERDICT, |data| {
            data.nested(NFTA_DATA_VERDICT, |verdict| {
                verdict.be32(NFTA_VERDICT_CODE, code);
                if let Some(chain) = chain {
                    verdict.text(NFTA_VERDICT_CHAIN, chain);
                }
            });
        })
    }

    /// Sends the packet, and all of its connection, to another address and port.
    pub(super) fn destination(self, address: Ipv4Addr, port: u16) -> Rule {
        const NFT_NAT_DNAT: u32 = 1;
        /// `NF_NAT_RANGE_PROTO_SPECIFIED`; that there is an address the kernel sees by itself.
        const WITH_PORT: u32 = 2;
        self.immediate(REG_1, |data| data.bytes(NFTA_DATA_VALUE, &address.octets()))
            .immediate(REG_2, |data| {
                data.bytes(NFTA_DATA_VALUE, &port.to_be_bytes())
            })
            .push("nat", |data| {
                data.be32(1, NFT_NAT_DNAT);
                data.be32(2, u32::from(NFPROTO_IPV4));
                data.be32(3, REG_1);
                data.be32(5, REG_2);
                data.be32(7, WITH_PORT);
            })
    }

    /// Lets the packet come from the address of the interface it leaves by.
    pub(super) fn masquerade(self) -> Rule {
        self.push("masq", |_| {})
    }
}
