//! The control plane's own certificate, and where it is reached.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use muster_client::identity::generate_key;
use muster_runtime::tls::{ServerTls, SpiffeKind};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_util::sync::CancellationToken;

use super::ServerError;
use crate::{
    authority::{Authority, Issued},
    config::{Config, split},
    rotation::Follow,
};

/// How long the control plane's own certificate lives; renewed at half of it.
const LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// Issues a certificate for every name by which this control plane may be reached.
pub(super) fn issue(
    config: &Config,
    authority: &Authority,
    control_plane_id: &str,
) -> Result<(Issued, PrivateKeyDer<'static>), ServerError> {
    let mut names = vec!["localhost".to_owned()];
    let mut addresses = vec![
        IpAddr::from([127, 0, 0, 1]),
        IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
    ];
    if !config.listen.ip().is_unspecified() {
        addresses.push(config.listen.ip());
    }
    names.extend(hostname());
    for text in &config.advertise {
        let (host, _) = split(text);
        match host.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => names.push(host.to_owned()),
        }
    }
    names.sort();
    names.dedup();
    addresses.sort();
    addresses.dedup();
    let key = generate_key();
    let issued = authority.issue_server(
        &authority.id(SpiffeKind::ControlPlane, control_plane_id),
        &key,
        &names,
        &addresses,
        LIFETIME,
    )?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok((issued, key))
}

/// Makes the listener trust and show what the authority says, whenever it is called.
pub(super) fn follow(
    config: &Config,
    authority: &Arc<Authority>,
    control_plane_id: &Arc<str>,
    tls: &ServerTls,
) -> Follow {
    let (config, authority) = (config.clone(), Arc::clone(authority));
    let (control_plane_id, tls) = (Arc::clone(control_plane_id), tls.clone());
    Box::new(move || {
        let (issued, key) =
            issue(&config, &authority, &control_plane_id).map_err(|error| error.to_string())?;
        tls.set_authorities(&authority.trusted())
            .and_then(|()| tls.set_identity(issued.chain, key))
            .map_err(|error| error.to_string())
    })
}

/// Renews it at half of its life, until `stop`.
pub(super) async fn renew(
    config: Config,
    authority: Arc<Authority>,
    control_plane_id: Arc<str>,
    tls: ServerTls,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LIFETIME / 2) => {}
            () = stop.cancelled() => return,
        }
        let renewed = issue(&config, &authority, &control_plane_id)
            .and_then(|(issued, key)| Ok(tls.set_identity(issued.chain, key)?));
        match renewed {
            Ok(()) => tracing::info!("the control plane's certificate is renewed"),
            Err(error) => {
                tracing::error!(%error, "the control plane's certificate is not renewed: {error}");
            }
        }
    }
}

/// Where others reach this control plane, as "HOST:PORT".
pub(super) fn address(config: &Config) -> String {
    let listen = config.listen;
    let host = match config.advertise.first().map(|text| split(text)) {
        Some((host, Some(port))) => return join(host, port),
        Some((host, None)) => host.to_owned(),
        None if listen.ip().is_unspecified() => {
            hostname().unwrap_or_else(|| "localhost".to_owned())
        }
        None => listen.ip().to_string(),
    };
    join(&host, &listen.port().to_string())
}

/// Where programs on this machine reach it.
pub(super) fn local_address(config: &Config) -> String {
    let mut address = config.listen;
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => [127, 0, 0, 1].into(),
            SocketAddr::V6(_) => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
        });
    }
    address.to_string()
}

fn join(host: &str, port: &str) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// The machine's own name, if a certificate can carry it.
fn hostname() -> Option<String> {
    let name = nix::unistd::gethostname().ok()?.into_string().ok()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    (!name.is_empty() && name.chars().all(plain)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_strings_say_what_others_can_reach() {
        let mut config = Config::new("nowhere".into());
        assert_eq!(address(&config), "127.0.0.1:8766");
        config.listen = "[::]:8766".parse().unwrap();
        assert_eq!(local_address(&config), "[::1]:8766");
        for (advertised, expected) in [
            ("muster.example.org", "muster.example.org:8766"),
            ("muster.example.org:443", "muster.example.org:443"),
            ("fd00::1", "[fd00::1]:8766"),
            ("[fd00::1]:443", "[fd00::1]:443"),
        ] {
            config.advertise = vec![advertised.to_owned()];
            assert_eq!(address(&config), expected);
        }
    }
}
