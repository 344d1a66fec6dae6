//! How far a job's tasks may reach: what a request may say about it.

use std::net::{Ipv4Addr, Ipv6Addr};

use bytes::Bytes;
use muster_proto::v1::{Confinement, CreateJobRequest, Mode, Network, Reason, network::Access};
use prost::Message as _;

use crate::model::Refusal;

/// Addresses in one list. A host's filter holds each of them.
const ALLOWED_MAX: usize = 100;

/// The confinement that a request asks for, serialized; empty if it asks for none.
pub(super) fn check(request: &CreateJobRequest) -> Result<Bytes, Refusal> {
    if request.network.is_none() && request.mode == 0 {
        return Ok(Bytes::new());
    }
    match Mode::try_from(request.mode) {
        Ok(Mode::Disabled) => {
            return Err(Refusal::invalid(
                "mode",
                "is read-only, edit or unrestricted: nothing starts in disabled",
            ));
        }
        Ok(_) => {}
        Err(_) => return Err(Refusal::invalid("mode", "is unknown")),
    }
    let network = request.network.clone();
    let network = network.filter(|network| network.access != 0 || !network.allow.is_empty());
    network.as_ref().map_or(Ok(()), check_network)?;
    let confinement = Confinement {
        mode: request.mode,
        network,
        ..Confinement::default()
    };
    Ok(confinement.encode_to_vec().into())
}

fn check_network(network: &Network) -> Result<(), Refusal> {
    let access = Access::try_from(network.access).unwrap_or(Access::Unspecified);
    match (access, network.allow.len()) {
        (Access::None | Access::All, 0) => Ok(()),
        (Access::None | Access::All, _) => Err(Refusal::invalid(
            "network.allow",
            "goes with network.access LIST",
        )),
        (Access::List, 0) => Err(Refusal::invalid("network.allow", "is empty")),
        (Access::List, count) if count > ALLOWED_MAX => Err(Refusal::new(
            Reason::LimitExceeded,
            format!("network.allow: has at most {ALLOWED_MAX} addresses"),
        )),
        (Access::List, _) => match network.allow.iter().find(|text| !is_allowable(text)) {
            None => Ok(()),
            Some(text) => Err(Refusal::invalid(
                "network.allow",
                &format!(
                    "holds {:?}; an entry looks like \"192.0.2.7:22\", \"10.0.0.0/8:443\" or \"[::1]:80\"",
                    text.chars().take(80).collect::<String>()
                ),
            )),
        },
        (Access::Unspecified, _) => Err(Refusal::invalid("network.access", "is NONE, ALL or LIST")),
    }
}

/// An address, perhaps with the length of its prefix, or "*" for all of them, and a port.
fn is_allowable(text: &str) -> bool {
    let Some((address, port)) = text.rsplit_once(':') else {
        return false;
    };
    if address == "*" {
        return is_port(port);
    }
    let (address, prefix) = match address.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (address, None),
    };
    // The length of a prefix stands within the brackets or after them.
    let (address, prefix) = match address.strip_prefix('[') {
        None => (address, prefix),
        Some(inner) => match (inner.strip_suffix(']'), prefix) {
            (Some(inner), prefix) => (inner, prefix),
            (None, Some(prefix)) => match prefix.strip_suffix(']') {
                Some(prefix) => (inner, Some(prefix)),
                None => return false,
            },
            (None, None) => return false,
        },
    };
    let bits = if address.parse::<Ipv4Addr>().is_ok() && !text.starts_with('[') {
        32
    } else if address.parse::<Ipv6Addr>().is_ok() && text.starts_with('[') {
        128
    } else {
        return false;
    };
    let fits =
        prefix.is_none_or(|prefix| prefix.parse::<u8>().is_ok_and(|bits_of| bits_of <= bits));
    fits && is_port(port)
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(access: Access, allow: &[&str]) -> Network {
        Network {
            access: access.into(),
            allow: allow.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn nothing_asked_for_is_nothing_written_down() {
        let empty = CreateJobRequest {
            network: Some(Network::default()),
            ..CreateJobRequest::default()
        };
        assert!(check(&CreateJobRequest::default()).unwrap().is_empty());
        assert!(check(&empty).unwrap().is_empty());
    }

    #[test]
    fn a_mode_is_one_in_which_something_starts() {
        let with = |mode: i32| {
            check(&CreateJobRequest {
                mode,
                ..CreateJobRequest::default()
            })
        };
        for mode in [Mode::ReadOnly, Mode::Edit, Mode::Unrestricted] {
            let bytes = with(mode.into()).unwrap();
            assert_eq!(Confinement::decode(bytes).unwrap().mode(), mode);
        }
        assert!(with(Mode::Disabled.into()).is_err());
        assert!(with(77).is_err());
    }

    #[test]
    fn a_list_holds_addresses_with_ports() {
        for text in [
            "*:443",
            "192.0.2.7:22",
            "10.0.0.0/8:443",
            "[::1]:80",
            "[2001:db8::]/32:443",
            "[2001:db8::/32]:443",
        ] {
            check_network(&network(Access::List, &[text])).unwrap();
        }
        for text in [
            "",
            "*",
            "*:0",
            "example.org:80",
            "192.0.2.7",
            "192.0.2.7:0",
            "192.0.2.7:x",
            "10.0.0.0/33:1",
            "::1:80",
            "[::1:80",
            "[192.0.2.7]:22",
            "[::1]/129:1",
            "1.2.3.4:99999",
        ] {
            assert!(
                check_network(&network(Access::List, &[text])).is_err(),
                "{text}"
            );
        }
        assert!(check_network(&network(Access::List, &[])).is_err());
        assert!(check_network(&network(Access::All, &["192.0.2.7:22"])).is_err());
        assert!(check_network(&network(Access::Unspecified, &["192.0.2.7:22"])).is_err());
        assert!(check_network(&network(Access::List, &["192.0.2.7:22"; 101])).is_err());
        check_network(&network(Access::None, &[])).unwrap();
    }
}
