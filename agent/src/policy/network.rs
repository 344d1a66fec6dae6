//! Which addresses and ports a task may reach. Pure.

use std::{net::IpAddr, str::FromStr};

use muster_proto::v1::{self, network::Access};

use super::Mode;
use crate::process::Sockets;

/// How much of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Network {
    /// Nothing.
    None,
    /// Everything.
    All,
    /// What one of these names.
    List(Vec<Rule>),
}

/// A range of addresses and a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Addresses and the number of bits that count; `None` is every address.
    pub(super) range: Option<(IpAddr, u8)>,
    pub(super) port: u16,
}

/// The network of a mode on a host with this ceiling, where nobody asks for another.
pub(super) fn of(ceiling: Option<&Network>, mode: Mode) -> Network {
    match (mode, ceiling) {
        (Mode::ReadOnly | Mode::Disabled, _) => Network::None,
        (_, None) => Network::All,
        (_, Some(ceiling)) => ceiling.clone(),
    }
}

impl Network {
    /// As the contract has it; `None` where nothing is said.
    pub(super) fn read(network: &v1::Network) -> Result<Option<Self>, String> {
        let access = Access::try_from(network.access)
            .map_err(|_| format!("network access {} is not known", network.access))?;
        Ok(Some(match access {
            Access::Unspecified => return Ok(None),
            Access::None => Self::None,
            Access::All => Self::All,
            Access::List => Self::list(&network.allow)?,
        }))
    }

    /// From what a list says.
    pub(super) fn list(texts: &[String]) -> Result<Self, String> {
        let rules = texts.iter().map(|text| text.parse());
        rules.collect::<Result<_, _>>().map(Self::List)
    }

    pub(super) fn wire(&self) -> v1::Network {
        let (access, allow) = match self {
            Self::None => (Access::None, Vec::new()),
            Self::All => (Access::All, Vec::new()),
            Self::List(rules) => (
                Access::List,
                rules.iter().map(ToString::to_string).collect(),
            ),
        };
        v1::Network {
            access: access.into(),
            allow,
        }
    }

    /// Whether all of it is a part of `other`.
    pub(super) fn is_within(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::None, _) | (_, Self::All) => true,
            (Self::List(rules), Self::List(others)) => rules
                .iter()
                .all(|rule| others.iter().any(|other| rule.is_within(other))),
            (Self::List(rules), Self::None) => rules.is_empty(),
            (Self::All, _) => false,
        }
    }

    /// What the kernel has to allow. An error is what it cannot hold back.
    pub(super) fn sockets(&self) -> Result<(Sockets, Vec<u32>), String> {
        match self {
            Self::None => Ok((Sockets::None, Vec::new())),
            Self::All => Ok((Sockets::All, Vec::new())),
            Self::List(rules) => {
                if let Some(rule) = rules.iter().find(|rule| rule.range.is_some()) {
                    return Err(format!(
                        "{rule} names addresses, and Linux can hold a task back by port only; allow \"*:{}\", or no \
                         network at all",
                        rule.port
                    ));
                }
                let ports = rules.iter().map(|rule| rule.port.into());
                Ok((Sockets::Ports, ports.collect()))
            }
        }
    }
}

impl Rule {
    fn is_within(&self, other: &Self) -> bool {
        let inside = match (self.range, other.range) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some((address, bits)), Some((range, range_bits))) => {
                bits >= range_bits
                    && address.is_ipv4() == range.is_ipv4()
                    && masked(address, range_bits) == masked(range, range_bits)
            }
        };
        inside && self.port == other.port
    }
}

/// The first bits of an address.
fn masked(address: IpAddr, bits: u8) -> u128 {
    let (value, width) = match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    match width - u32::from(bits).min(width) {
        128 => 0,
        rest => value >> rest << rest,
    }
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} names no addresses and port; write \"10.0.0.0/8:443\", \"[2001:db8::]/32:443\" or \"*:443\""
            )
        };
        let (range, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        if range == "*" {
            return Ok(Self { range: None, port });
        }
        let (address, bits) = match range.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| wrong())?)),
            None => (range, None),
        };
        let bare = address
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let address: IpAddr = bare.unwrap_or(address).parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        if bits > most || address.is_ipv6() != bare.is_some() {
            return Err(wrong());
        }
        Ok(Self {
            range: Some((address, bits)),
            port,
        })
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let port = self.port;
        match self.range {
            None => write!(f, "*:{port}"),
            Some((IpAddr::V4(address), 32)) => write!(f, "{address}:{port}"),
            Some((IpAddr::V4(address), bits)) => write!(f, "{address}/{bits}:{port}"),
            Some((IpAddr::V6(address), 128)) => write!(f, "[{address}]:{port}"),
            Some((IpAddr::V6(address), bits)) => write!(f, "[{address}]/{bits}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Rule {
        text.parse().unwrap()
    }

    #[test]
    fn rules_are_read_as_they_are_written() {
        for text in [
            "10.0.0.0/8:443",
            "[2001:db8::]/32:80",
            "192.0.2.7:22",
            "[::1]:80",
            "*:443",
        ] {
            assert_eq!(rule(text).to_string(), text);
        }
        for text in [
            "",
            "443",
            "host:443",
            "::1:80",
            "10.0.0.0/33:1",
            "*:70000",
            "*",
        ] {
            assert!(text.parse::<Rule>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_range_holds_its_parts_and_nothing_else() {
        let within = |a: &str, b: &str| rule(a).is_within(&rule(b));
        assert!(within("10.1.2.3:443", "10.0.0.0/8:443"));
        assert!(within("10.1.0.0/16:443", "10.0.0.0/8:443"));
        assert!(within("[::1]:80", "*:80"));
        assert!(!within("10.1.2.3:80", "10.0.0.0/8:443"));
        assert!(!within("11.1.2.3:443", "10.0.0.0/8:443"));
        assert!(!within("10.0.0.0/8:443", "10.1.0.0/16:443"));
        assert!(!within("*:80", "0.0.0.0/0:80"));
        assert!(!within("[::1]:80", "0.0.0.0/0:80"));
    }

    #[test]
    fn what_names_addresses_cannot_be_enforced() {
        let list = |texts: &[&str]| Network::List(texts.iter().map(|text| rule(text)).collect());
        assert!(list(&["*:443", "10.0.0.1:80"]).sockets().is_err());
        let (sockets, ports) = list(&["*:443", "*:80"]).sockets().unwrap();
        assert_eq!((sockets, ports), (Sockets::Ports, vec![443, 80]));
    }
}
