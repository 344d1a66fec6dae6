-- The audit log from here on: what one transaction records is one block, compressed. A block stands for entries as rows of
-- `audit` did, each chained to the one before it; what is there already stays where it is, ahead of all blocks.
CREATE TABLE audit_blocks (
    first      INTEGER PRIMARY KEY,  -- number of its first entry; numbers have no gap
    count      INTEGER NOT NULL,     -- entries
    dictionary INTEGER NOT NULL,     -- what it is compressed by (store/audit/block.rs); 0: it is not
    bytes      INTEGER NOT NULL,     -- of its entries as they were hashed, each with a line break
    entries    BLOB    NOT NULL,
    hash       BLOB    NOT NULL      -- of its last entry: SHA-256 over the hash before it and the entry; docs/audit.md
) STRICT;

CREATE TRIGGER audit_blocks_are_not_changed BEFORE UPDATE ON audit_blocks BEGIN
    SELECT RAISE(ABORT, 'the audit log is only added to');
END;

CREATE TRIGGER audit_blocks_are_not_cut BEFORE DELETE ON audit_blocks BEGIN
    SELECT RAISE(ABORT, 'the audit log is only added to');
END;
