//! The join string: address, token and pin in one.

use std::{fmt, str::FromStr};

/// What a join string begins with.
const PREFIX: &str = "mst_join_";

/// `mst_join_SECRET@HOST:PORT#PIN`: a join token, where to present it, and the SHA-256 of the certificate of the
/// authority that will be there, as hex. A secret: it prints without its token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinString {
    token: String,
    address: String,
    pin: [u8; 32],
}

/// Why a text is no join string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinStringError {
    /// It does not begin as one.
    #[error("a join string begins with {PREFIX:?}")]
    Token,
    /// Between "@" and "#" there is no "HOST:PORT".
    #[error("a join string has \"@HOST:PORT\" after the token")]
    Address,
    /// After "#" there are not 64 hexadecimal digits.
    #[error("a join string ends with \"#\" and 64 hexadecimal digits; was the rest cut off?")]
    Pin,
}

impl JoinString {
    /// The secret token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Where the control plane listens, as "HOST:PORT".
    pub fn address(&self) -> &str {
        &self.address
    }

    /// SHA-256 of the authority's certificate.
    pub fn pin(&self) -> [u8; 32] {
        self.pin
    }
}

impl fmt::Debug for JoinString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}...@{}", self.address)
    }
}

impl FromStr for JoinString {
    type Err = JoinStringError;

    fn from_str(text: &str) -> Result<Self, JoinStringError> {
        let text = text.trim();
        if !text.starts_with(PREFIX) {
            return Err(JoinStringError::Token);
        }
        let (token, rest) = text.split_once('@').ok_or(JoinStringError::Address)?;
        let (address, pin) = rest.rsplit_once('#').ok_or(JoinStringError::Pin)?;
        let (host, port) = address.rsplit_once(':').ok_or(JoinStringError::Address)?;
        if host.is_empty() || port.parse::<u16>().is_err() {
            return Err(JoinStringError::Address);
        }
        Ok(Self {
            token: token.to_owned(),
            address: address.to_owned(),
            pin: digest(pin).ok_or(JoinStringError::Pin)?,
        })
    }
}

fn digest(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_string_is_taken_apart() {
        let pin = "0f".repeat(32);
        let join: JoinString = format!(" mst_join_abc@[::1]:8766#{pin}\n").parse().unwrap();
        assert_eq!(join.token(), "mst_join_abc");
        assert_eq!(join.address(), "[::1]:8766");
        assert_eq!(join.pin(), [15; 32]);
        assert_eq!(format!("{join:?}"), "mst_join_...@[::1]:8766");
    }

    #[test]
    fn what_is_missing_is_named() {
        let pin = "0f".repeat(32);
        for (text, error) in [
            (format!("abc@h:1#{pin}"), JoinStringError::Token),
            (format!("mst_join_abc#{pin}"), JoinStringError::Address),
            (format!("mst_join_abc@h#{pin}"), JoinStringError::Address),
            (format!("mst_join_abc@h:x#{pin}"), JoinStringError::Address),
            ("mst_join_abc@h:1".to_owned(), JoinStringError::Pin),
            ("mst_join_abc@h:1#0f".to_owned(), JoinStringError::Pin),
            (
                format!("mst_join_abc@h:1#{}", "é".repeat(32)),
                JoinStringError::Pin,
            ),
        ] {
            assert_eq!(text.parse::<JoinString>(), Err(error), "{text}");
        }
    }
}
