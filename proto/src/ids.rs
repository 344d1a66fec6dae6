//! Ids: a letter, a dash and 20 characters of Crockford's base 32 in lower case, which are 100 bits.
//!
//! Host ids are drawn; job and task ids follow from what they name, so that a retry names the same
//! ones whatever was lost in between. Ids are names, not capabilities.

use std::{fmt, str::FromStr};

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const CHARACTERS: usize = 20;

/// Why a text is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {kind} id: expected \"{prefix}-\" and 20 of 0-9 a-z without i, l, o, u")]
pub struct ParseIdError {
    text: String,
    kind: &'static str,
    prefix: char,
}

macro_rules! id {
    ($name:ident, $prefix:literal, $kind:literal) => {
        #[doc = concat!("Names a ", $kind, ".")]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; CHARACTERS]);

        impl $name {
            /// From the first 100 bits of `bytes`, which are random or a digest.
            pub fn from_bytes(bytes: &[u8; 32]) -> Self {
                Self(encode(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let text = std::str::from_utf8(&self.0).expect("the alphabet is ASCII");
                write!(f, concat!($prefix, "-{}"), text)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                decode(text, $prefix).map(Self).ok_or_else(|| ParseIdError {
                    text: text.chars().take(64).collect(),
                    kind: $kind,
                    prefix: $prefix,
                })
            }
        }
    };
}

id!(HostId, 'h', "host");
id!(JobId, 'j', "job");
id!(TaskId, 't', "task");
id!(ApprovalId, 'p', "approval");

fn encode(bytes: &[u8; 32]) -> [u8; CHARACTERS] {
    let mut bits = u128::from_be_bytes(bytes[..16].try_into().expect("16 of 32 bytes")) >> 28;
    let mut text = [0; CHARACTERS];
    for slot in text.iter_mut().rev() {
        *slot = ALPHABET[(bits & 31) as usize];
        bits >>= 5;
    }
    text
}

fn decode(text: &str, prefix: char) -> Option<[u8; CHARACTERS]> {
    let rest = text.strip_prefix(prefix)?.strip_prefix('-')?.as_bytes();
    let characters: [u8; CHARACTERS] = rest.try_into().ok()?;
    characters
        .iter()
        .all(|c| ALPHABET.contains(c))
        .then_some(characters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_as_written() {
        let id = TaskId::from_bytes(&[0x5a; 32]);
        assert_eq!(id.to_string().len(), 22);
        assert_eq!(id.to_string().parse::<TaskId>().unwrap(), id);
        assert_eq!(
            HostId::from_bytes(&[0; 32]).to_string(),
            "h-00000000000000000000"
        );
        assert_eq!(
            HostId::from_bytes(&[255; 32]).to_string(),
            "h-zzzzzzzzzzzzzzzzzzzz"
        );
    }

    #[test]
    fn other_texts_are_no_ids() {
        for text in [
            "",
            "h-",
            "t-00000000000000000000",
            "h-0000000000000000000",
            "h-0000000000000000000i",
            "h-0000000000000000000U",
        ] {
            assert!(text.parse::<HostId>().is_err(), "{text}");
        }
    }
}
