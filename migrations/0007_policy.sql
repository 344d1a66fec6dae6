-- How far tasks may reach, why a job is wanted, and the approval that it runs by.
ALTER TABLE jobs ADD COLUMN confinement BLOB NOT NULL DEFAULT x'';  -- muster.v1.Confinement; empty: the host's ceiling decides
ALTER TABLE jobs ADD COLUMN reason      TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN approval_id TEXT NOT NULL DEFAULT '';

-- What a host applied, as it reported it.
ALTER TABLE tasks ADD COLUMN confinement BLOB;                      -- muster.v1.Confinement; NULL: not told

-- What an operator lowered a host to.
ALTER TABLE hosts ADD COLUMN mode_limit TEXT
    CHECK (mode_limit IN ('read-only', 'edit', 'unrestricted', 'disabled'));
ALTER TABLE hosts ADD COLUMN mode_note  TEXT NOT NULL DEFAULT '';

-- What principals are to policy. Whoever was there before there were roles keeps what it could do: the first
-- operator is the one that made the others.
ALTER TABLE principals ADD COLUMN roles TEXT NOT NULL DEFAULT '[]';  -- JSON array of texts
UPDATE principals SET roles = '["ai"]' WHERE principal LIKE 'ai/%';
UPDATE principals SET roles = '["operator"]' WHERE principal LIKE 'operator/%' OR principal LIKE 'automation/%';
UPDATE principals SET roles = '["admin"]' WHERE principal = (
    SELECT principal FROM principals WHERE principal LIKE 'operator/%' ORDER BY create_time, principal LIMIT 1);

-- Set while a principal is suspended for going over a limit.
ALTER TABLE principals ADD COLUMN suspend_time  INTEGER;
ALTER TABLE principals ADD COLUMN suspend_cause TEXT NOT NULL DEFAULT '';

-- Policies: every version that ever stood; the highest one stands. None: those that are shipped.
CREATE TABLE policies (
    version     INTEGER PRIMARY KEY,
    files       TEXT    NOT NULL,     -- JSON object: name to text
    author      TEXT    NOT NULL,
    note        TEXT    NOT NULL DEFAULT '',
    create_time INTEGER NOT NULL      -- Unix milliseconds
) STRICT;
