-- The audit log: what was decided and done, each entry chained to the one before it.
--
-- Rows are only ever added: by the one writer, in the transaction of what they tell of. Nothing is looked up here but
-- by number, so that adding a row writes to the end of one tree and nowhere else.
CREATE TABLE audit (
    number INTEGER PRIMARY KEY,  -- from 1, without gap
    time   INTEGER NOT NULL,     -- the entry's own, for filters; what is hashed stands in the entry
    entry  TEXT    NOT NULL,     -- a JSON object, as it was hashed
    hash   BLOB    NOT NULL      -- SHA-256 over the hash before it and this entry; docs/audit.md
) STRICT;

CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit BEGIN
    SELECT RAISE(ABORT, 'the audit log is only added to');
END;

CREATE TRIGGER audit_is_not_cut BEFORE DELETE ON audit BEGIN
    SELECT RAISE(ABORT, 'the audit log is only added to');
END;

-- What a task's host signed when it was over: a muster.v1.SignedReceipt.
ALTER TABLE tasks ADD COLUMN receipt BLOB;
