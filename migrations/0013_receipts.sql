-- Receipts that a host signed together: the root, its signature, and the hashes that lead from each receipt to the root.
CREATE TABLE signed_receipts (
    batch       INTEGER PRIMARY KEY,    -- when it came, Unix microseconds, and later than any before
    host_id     TEXT    NOT NULL,
    root        BLOB    NOT NULL,       -- muster.v1.ReceiptRoot: the exact bytes that are signed
    signature   BLOB    NOT NULL,
    certificate INTEGER NOT NULL REFERENCES receipt_certificates,
    leaf_hashes BLOB    NOT NULL        -- 32 bytes each, in the order of the tree
) STRICT;

-- What hosts signed with, once for all that was signed so.
CREATE TABLE receipt_certificates (
    certificate INTEGER PRIMARY KEY,
    digest      BLOB    NOT NULL UNIQUE,  -- SHA-256 of the chain
    chain       BLOB    NOT NULL          -- the host's certificate (DER), then what signed it, as a muster.v1.SignedReceipt
) STRICT;

CREATE INDEX signed_receipts_by_certificate ON signed_receipts (certificate);
