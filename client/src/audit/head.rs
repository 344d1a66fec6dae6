//! Signed heads: where a log stood, on whose word.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use muster_proto::v1::AuditHead;
use muster_runtime::tls::SpiffeKind;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::{Position, Purpose, SignatureError};

/// Why a text is no head.
#[derive(Debug, thiserror::Error)]
#[error("this is no head of an audit log: {0}")]
pub struct HeadError(String);

/// What a head says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Whose log.
    pub control_plane: String,
    /// New at each restore of the control plane.
    pub generation: String,
    /// Where the log stood.
    pub position: Position,
    /// When, Unix milliseconds.
    pub time: i64,
    /// As it was signed.
    pub signed: AuditHead,
}

#[derive(Serialize, Deserialize)]
struct Statement {
    control_plane: String,
    generation: String,
    count: u64,
    hash: String,
    time: i64,
}

#[derive(Serialize, Deserialize)]
struct Line {
    statement: String,
    signature: String,
    certificates: Vec<String>,
}

impl Head {
    /// The text that is signed for a log that stands here.
    pub fn statement(
        control_plane: &str,
        generation: &str,
        position: Position,
        time: i64,
    ) -> String {
        let statement = Statement {
            control_plane: control_plane.to_owned(),
            generation: generation.to_owned(),
            count: position.count,
            hash: HEXLOWER.encode(&position.hash),
            time,
        };
        serde_json::to_string(&statement).expect("texts and numbers are JSON")
    }

    /// Reads what a head says. Whether its signature counts is for [`Head::check`] to say.
    pub fn read(signed: AuditHead) -> Result<Self, HeadError> {
        let statement: Statement = serde_json::from_str(&signed.statement)
            .map_err(|error| HeadError(error.to_string()))?;
        let hash = HEXLOWER
            .decode(statement.hash.as_bytes())
            .ok()
            .and_then(|hash| hash.try_into().ok())
            .ok_or_else(|| HeadError("its hash is none".to_owned()))?;
        Ok(Self {
            control_plane: statement.control_plane,
            generation: statement.generation,
            position: Position {
                count: statement.count,
                hash,
            },
            time: statement.time,
            signed,
        })
    }

    /// As one line of JSON.
    pub fn to_line(&self) -> String {
        let certificates = self.signed.certificate_chain.iter();
        let line = Line {
            statement: self.signed.statement.clone(),
            signature: STANDARD.encode(&self.signed.signature),
            certificates: certificates.map(|der| STANDARD.encode(der)).collect(),
        };
        serde_json::to_string(&line).expect("texts are JSON")
    }

    /// Reads a line of JSON.
    pub fn from_line(line: &str) -> Result<Self, HeadError> {
        let wrong = |error: String| HeadError(error);
        let line: Line = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
        let decode = |text: &str| {
            let bytes = STANDARD.decode(text).map(Bytes::from);
            bytes.map_err(|error| wrong(error.to_string()))
        };
        Self::read(AuditHead {
            signature: decode(&line.signature)?,
            certificate_chain: line
                .certificates
                .iter()
                .map(|text| decode(text))
                .collect::<Result<_, _>>()?,
            statement: line.statement,
        })
    }

    /// Checks that the control plane which it names signed it, by the word of one of these authorities.
    pub fn check(&self, authorities: &[CertificateDer<'_>]) -> Result<(), SignatureError> {
        let signer = Purpose::Head.check(
            self.signed.statement.as_bytes(),
            &self.signed.signature,
            &self.signed.certificate_chain,
            authorities,
            self.time,
        )?;
        if signer.kind == SpiffeKind::ControlPlane && signer.name == self.control_plane {
            return Ok(());
        }
        Err(SignatureError(format!("{signer} signed it")))
    }
}
