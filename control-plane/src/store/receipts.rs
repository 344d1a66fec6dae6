//! Receipts that hosts signed together, in the ledger.

use std::sync::Arc;

use bytes::Bytes;
use muster_client::audit::{SignedTogether, sha256};
use muster_proto::{agent::v1, v1::SignedReceipt};
use prost::Message as _;
use sqlx::{Row as _, SqlitePool};

use super::{Batch, StoreError, jobs::parsed};
use crate::model::SignedReceipts;

const PUT_CERTIFICATE: &str = "INSERT INTO receipt_certificates (digest, chain) VALUES (?, ?) ON CONFLICT (digest) DO NOTHING";

// Written again after a try that failed and yet was committed, it is the same.
const PUT: &str =
    "INSERT INTO signed_receipts (batch, host_id, root, signature, leaf_hashes, certificate)
     SELECT ?, ?, ?, ?, ?, certificate FROM receipt_certificates WHERE digest = ?
     ON CONFLICT (batch) DO NOTHING";

// No task is older than its job, and none was signed for before it was asked for.
const FORGET: &str = "DELETE FROM signed_receipts
     WHERE batch < 1000 * min(?, (SELECT coalesce(min(create_time), ?) FROM jobs))";

const FORGET_CERTIFICATES: &str = "DELETE FROM receipt_certificates WHERE NOT EXISTS
         (SELECT 1 FROM signed_receipts AS signed WHERE signed.certificate = receipt_certificates.certificate)";

/// Adds receipts to a batch, ahead of the tasks that name them.
pub(crate) fn put(batch: &mut Batch, receipts: &[Arc<SignedReceipts>]) {
    for one in receipts {
        let signed = one.together.signed();
        let chain = SignedReceipt {
            certificate_chain: signed.certificate_chain.clone(),
            ..SignedReceipt::default()
        };
        let chain = chain.encode_to_vec();
        let digest = sha256(&chain);
        batch.push(PUT_CERTIFICATE, [(&digest[..]).into(), chain.into()]);
        batch.push(
            PUT,
            [
                one.batch.into(),
                one.host_id.to_string().into(),
                (&signed.root[..]).into(),
                (&signed.signature[..]).into(),
                (&signed.leaf_hashes[..]).into(),
                (&digest[..]).into(),
            ],
        );
    }
}

/// Reads receipts that were signed together, by their name.
pub(crate) async fn read(
    readers: &SqlitePool,
    batch: i64,
) -> Result<Option<SignedReceipts>, StoreError> {
    let row = sqlx::query(
        "SELECT host_id, root, signature, leaf_hashes, chain
         FROM signed_receipts JOIN receipt_certificates USING (certificate) WHERE batch = ?",
    )
    .bind(batch)
    .fetch_optional(readers)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let bytes = |column| row.try_get::<Vec<u8>, _>(column).map(Bytes::from);
    let chain = SignedReceipt::decode(bytes("chain")?).unwrap_or_default();
    let signed = v1::SignedReceipts {
        root: bytes("root")?,
        signature: bytes("signature")?,
        certificate_chain: chain.certificate_chain,
        leaf_hashes: bytes("leaf_hashes")?,
    };
    let together = SignedTogether::read(signed)
        .map_err(|error| StoreError::Broken(error.to_string().into()))?;
    Ok(Some(SignedReceipts {
        batch,
        host_id: parsed(&row, "host_id")?,
        together,
        doubt: String::new(),
        taken: true.into(),
    }))
}

/// The name of the newest receipts; 0 if there are none.
pub(crate) async fn newest(readers: &SqlitePool) -> Result<i64, StoreError> {
    let newest: Option<i64> = sqlx::query_scalar("SELECT max(batch) FROM signed_receipts")
        .fetch_one(readers)
        .await?;
    Ok(newest.unwrap_or(0))
}

/// Deletes receipts that came before `time` (Unix milliseconds) and that no task names any more, with the certificates
/// that only they were signed with.
pub(crate) fn forget_before(time: i64) -> Batch {
    Batch::new()
        .with(FORGET, [time.into(), time.into()])
        .with(FORGET_CERTIFICATES, [])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use muster_proto::ids::HostId;

    use super::*;
    use crate::store::Store;

    fn signed(batch: i64, certificate: &'static [u8]) -> Arc<SignedReceipts> {
        let signed = v1::SignedReceipts {
            root: Bytes::from_static(b"root"),
            signature: Bytes::from_static(b"signature"),
            certificate_chain: vec![Bytes::from_static(certificate)],
            leaf_hashes: vec![7; 64].into(),
        };
        Arc::new(SignedReceipts {
            batch,
            host_id: HostId::from_bytes(&[1; 32]),
            together: SignedTogether::read(signed).unwrap(),
            doubt: String::new(),
            taken: true.into(),
        })
    }

    #[tokio::test]
    async fn what_was_signed_comes_back_and_goes_once_no_job_is_as_old() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).await.unwrap();
        let receipts = [
            signed(1000, b"first"),
            signed(2000, b"first"),
            signed(3000, b"second"),
        ];
        for _ in 0..2 {
            // Again, as after a commit whose answer was lost.
            let mut batch = Batch::new();
            put(&mut batch, &receipts);
            store.writer.commit(batch).await.unwrap();
        }
        assert_eq!(newest(&store.readers).await.unwrap(), 3000);
        for one in &receipts {
            let found = read(&store.readers, one.batch).await.unwrap().unwrap();
            assert_eq!(found.together.signed(), one.together.signed());
            assert_eq!(found.host_id, one.host_id);
        }
        let certificates = async || -> i64 {
            let count = sqlx::query_scalar("SELECT count(*) FROM receipt_certificates");
            count.fetch_one(&store.readers).await.unwrap()
        };
        assert_eq!(certificates().await, 2);
        store.writer.commit(forget_before(3)).await.unwrap();
        assert!(read(&store.readers, 2000).await.unwrap().is_none());
        assert!(read(&store.readers, 3000).await.unwrap().is_some());
        assert_eq!(certificates().await, 1);
    }
}
