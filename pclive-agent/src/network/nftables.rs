//! The few nf_tables messages that a lock needs, as bytes.
//!
//! Kernel: include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h. A batch is one transaction: all of it happens,
//! or nothing. A batch without its END is only checked (`nft -c` does the same). Attributes are big-endian,
//! headers native.

/// What a packet meets that no rule matches; a chain without rules is nothing but its policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    /// NF_DROP
    Drop,
    /// NF_ACCEPT
    Accept,
}

/// Where a base chain of family `netdev` is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    /// Linux 4.2.
    Ingress,
    /// Linux 5.16.
    Egress,
}

/// How long a table lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// Until it is deleted, or its namespace ends.
    Nobody,
    /// Also until the socket that made it is closed (NFT_TABLE_F_OWNER, Linux 5.12).
    Socket,
}

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
pub(super) const NEW_TABLE: u16 = SUBSYSTEM << 8;
const GET_TABLE: u16 = SUBSYSTEM << 8 | 1;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
/// Like DELTABLE, but not an error when there is none. Linux 6.3.
const DESTROY_TABLE: u16 = SUBSYSTEM << 8 | 26;

const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const CREATE: u16 = 0x400;
const DUMP: u16 = 0x300;

const UNSPECIFIED_FAMILY: u8 = 0;
const NETDEV_FAMILY: u8 = 5;

const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const TABLE_OWNED: u32 = 0x2;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const HOOK_DEVICES: u16 = 4;
const DEVICE_NAME: u16 = 1;
const NESTED: u16 = 0x8000;

/// Before any other chain of the device; XDP and tc come before them at ingress.
const PRIORITY: i32 = -500;

/// Messages of one transaction, numbered from 1.
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// Where the last message starts.
    last: usize,
    sequence: u32,
}

impl Batch {
    /// An empty transaction.
    pub(super) fn new() -> Self {
        let mut batch = Self { bytes: Vec::new(), last: 0, sequence: 0 };
        batch.message(BATCH_BEGIN, REQUEST, UNSPECIFIED_FAMILY, SUBSYSTEM, &[]);
        batch
    }

    /// Deletes a table if it is there.
    pub(super) fn destroy_table(&mut self, table: &str) {
        self.message(DESTROY_TABLE, REQUEST, NETDEV_FAMILY, 0, &text(TABLE_NAME, table));
    }

    /// A table of family `netdev`.
    pub(super) fn new_table(&mut self, table: &str, owner: Owner) {
        let mut body = text(TABLE_NAME, table);
        if owner == Owner::Socket {
            body.extend(attribute(TABLE_FLAGS, &TABLE_OWNED.to_be_bytes()));
        }
        self.message(NEW_TABLE, REQUEST | CREATE, NETDEV_FAMILY, 0, &body);
    }

    /// A base chain without rules on every one of `devices`.
    pub(super) fn new_chain(&mut self, table: &str, hook: Hook, policy: Policy, devices: &[String]) {
        let (name, number) = match hook {
            Hook::Ingress => ("ingress", 0u32),
            Hook::Egress => ("egress", 1),
        };
        let verdict = match policy {
            Policy::Drop => 0u32,
            Policy::Accept => 1,
        };
        let devices: Vec<u8> = devices.iter().flat_map(|device| text(DEVICE_NAME, device)).collect();
        let mut attachment = attribute(HOOK_NUMBER, &number.to_be_bytes());
        attachment.extend(attribute(HOOK_PRIORITY, &PRIORITY.to_be_bytes()));
        attachment.extend(attribute(HOOK_DEVICES | NESTED, &devices));
        let mut body = text(CHAIN_TABLE, table);
        body.extend(text(CHAIN_NAME, name));
        body.extend(attribute(CHAIN_HOOK | NESTED, &attachment));
        body.extend(attribute(CHAIN_POLICY, &verdict.to_be_bytes()));
        body.extend(text(CHAIN_TYPE, "filter"));
        self.message(NEW_CHAIN, REQUEST | CREATE, NETDEV_FAMILY, 0, &body);
    }

    /// The transaction, and the number of the message whose acknowledgement ends it.
    pub(super) fn commit(mut self) -> (Vec<u8>, u32) {
        let last = self.acknowledge_last();
        self.message(BATCH_END, REQUEST, UNSPECIFIED_FAMILY, SUBSYSTEM, &[]);
        (self.bytes, last)
    }

    /// The transaction as a question: the kernel says whether it would work, and does nothing.
    pub(super) fn check(mut self) -> (Vec<u8>, u32) {
        let last = self.acknowledge_last();
        (self.bytes, last)
    }

    fn acknowledge_last(&mut self) -> u32 {
        self.bytes[self.last + 6] |= ACKNOWLEDGE as u8;
        self.sequence
    }

    /// nlmsghdr, nfgenmsg, attributes.
    fn message(&mut self, kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) {
        self.sequence += 1;
        self.last = self.bytes.len();
        let length = (16 + 4 + attributes.len()) as u32;
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(attributes);
    }
}

/// The question for every table of a namespace.
pub(super) fn list_tables() -> Vec<u8> {
    let mut question = Batch { bytes: Vec::new(), last: 0, sequence: 0 };
    question.message(GET_TABLE, REQUEST | DUMP, UNSPECIFIED_FAMILY, 0, &[]);
    question.bytes
}

/// The table's name in an answer to it (nfgenmsg, attributes).
pub(super) fn table_name(answer: &[u8]) -> Option<String> {
    let mut rest = answer.get(4..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        if kind & !NESTED == TABLE_NAME {
            let name = rest.get(4..length)?.split(|&byte| byte == 0).next()?;
            return Some(String::from_utf8_lossy(name).into_owned());
        }
        // No attribute is shorter than its head.
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
}

/// nlattr: length without padding, kind, value, padding to 4 bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

/// A string with its NUL.
fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), &[0]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_found_among_the_attributes_and_broken_answers_have_none() {
        let answer = [&[0; 4][..], &attribute(TABLE_FLAGS, &[1, 2, 3]), &text(TABLE_NAME, "filter")].concat();
        assert_eq!(table_name(&answer).as_deref(), Some("filter"));
        for length in 0..answer.len() - 8 {
            assert_eq!(table_name(&answer[..length]), None, "{length}");
        }
        assert_eq!(table_name(&[0; 64]), None);
    }
}
