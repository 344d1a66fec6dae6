-- Restores: each time the ledger came back from a backup, or was found to be set back. A new generation begins with
-- each.
CREATE TABLE restores (
    generation TEXT    PRIMARY KEY,
    replaced   TEXT    NOT NULL,     -- the generation before it
    time       INTEGER NOT NULL,
    cause      TEXT    NOT NULL      -- for people: what showed it
) STRICT, WITHOUT ROWID;

-- Uploads: which hosts have said, under a generation that began with a restore, what they still know.
CREATE TABLE uploads (
    generation TEXT    NOT NULL REFERENCES restores ON DELETE CASCADE,
    host_id    TEXT    NOT NULL,
    time       INTEGER NOT NULL,
    PRIMARY KEY (generation, host_id)
) STRICT, WITHOUT ROWID;

-- Set in the copy that a backup holds, and only there: whoever opens such a ledger begins a generation.
ALTER TABLE ledger ADD COLUMN backup_time INTEGER;

-- Pending tasks that a restore found: they wait for an operator's release, then for their host's upload.
ALTER TABLE tasks ADD COLUMN hold_time INTEGER;
ALTER TABLE tasks ADD COLUMN released INTEGER NOT NULL DEFAULT 0;

CREATE INDEX tasks_held ON tasks (job_id) WHERE hold_time IS NOT NULL AND released = 0;
