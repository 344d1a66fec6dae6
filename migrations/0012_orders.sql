-- One record for an order: the layout that intake and offers have. What is looked for, sorted by or changed stays a column.
ALTER TABLE jobs ADD COLUMN record  BLOB;   -- what was asked for: muster.agent.v1.SealedOffer without the part of a task
ALTER TABLE jobs ADD COLUMN secrets BLOB;   -- encrypted values of its environment; NULL: none, or forgotten at its end

-- SQL cannot write the records of the orders that are there: `store/take_up.rs` does so, at the same start, and empties this.
CREATE TABLE orders_before (
    job_id              TEXT    NOT NULL,
    principal           TEXT    NOT NULL,
    request_id          TEXT    NOT NULL,
    request_digest      BLOB    NOT NULL,
    selector            TEXT    NOT NULL,
    action              BLOB    NOT NULL,
    create_time         INTEGER NOT NULL,
    start_deadline_time INTEGER NOT NULL,
    lost_after          INTEGER NOT NULL,
    confinement         BLOB    NOT NULL,
    reason              TEXT    NOT NULL,
    approval_id         TEXT    NOT NULL
) STRICT;

INSERT INTO orders_before
    SELECT job_id, principal, request_id, request_digest, selector, action, create_time, start_deadline_time, lost_after,
        confinement, reason, approval_id FROM jobs ORDER BY rowid;

-- Column by column: a table made anew would take its tasks with it when the old one is dropped.
ALTER TABLE jobs DROP COLUMN action;
ALTER TABLE jobs DROP COLUMN selector;
ALTER TABLE jobs DROP COLUMN request_digest;
ALTER TABLE jobs DROP COLUMN request_id;
ALTER TABLE jobs DROP COLUMN lost_after;
ALTER TABLE jobs DROP COLUMN confinement;
ALTER TABLE jobs DROP COLUMN reason;
ALTER TABLE jobs DROP COLUMN approval_id;

-- What a task ended with beside exit code and streams.
ALTER TABLE tasks ADD COLUMN result BLOB;   -- muster.v1.TaskResult; NULL: none
