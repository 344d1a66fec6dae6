//! An authority of the relay's own, and a certificate for each of its parts. Frozen with the rest of the relay.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use muster_client::identity::{Identity, generate_key};
use muster_proto::CONTROL_PLANE_NAME;
use muster_runtime::tls::{SpiffeId, SpiffeKind};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, SanType};

/// Certificates are valid for so long before now and after.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Writes an identity for each part into a folder of `root`; they meet at `address`.
pub(super) fn make(root: &Path, address: &str) -> anyhow::Result<()> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, generate_key())?;
    for (folder, kind) in [
        ("server", SpiffeKind::ControlPlane),
        ("agent", SpiffeKind::Host),
        ("operator", SpiffeKind::Operator),
    ] {
        let key = generate_key();
        let id = SpiffeId::new("muster.internal", kind, "relay").to_string();
        let mut params = CertificateParams::new([CONTROL_PLANE_NAME.to_owned()])?;
        params
            .subject_alt_names
            .push(SanType::URI(id.as_str().try_into()?));
        params.not_before = (SystemTime::now() - DAY).into();
        params.not_after = (SystemTime::now() + DAY).into();
        let certificate = params.signed_by(&key, &authority)?;
        let chain = vec![certificate.der().clone(), authority.der().clone()];
        let authorities = vec![authority.der().clone()];
        let directory = root.join(folder);
        let address = address.to_owned();
        let name = super::HOST.to_owned();
        Identity::new(&directory, key, chain, authorities, address, name)?.store()?;
    }
    Ok(())
}
