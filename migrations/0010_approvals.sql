-- Approvals: what waits, or waited, for somebody's word. A row is durable before the job that waits for it is accepted.
CREATE TABLE approvals (
    approval_id    TEXT    NOT NULL PRIMARY KEY,        -- follows from the job, or from who asks and the request id
    kind           TEXT    NOT NULL CHECK (kind IN ('job', 'grant')),
    state          TEXT    NOT NULL CHECK (state IN ('awaiting', 'approved', 'declined', 'expired', 'drifted', 'cancelled')),
    principal      TEXT    NOT NULL,                    -- who asks
    owner          TEXT    NOT NULL DEFAULT '',         -- the operator that owns an ai which asks
    reason         TEXT    NOT NULL DEFAULT '',         -- why, as whoever asks says
    digest         BLOB    NOT NULL,                    -- SHA-256 of what is to happen
    count          INTEGER NOT NULL CHECK (count > 0),  -- how many have to approve
    approvers      TEXT    NOT NULL,                    -- the role whose principals may
    rules          TEXT    NOT NULL DEFAULT '[]',       -- JSON array: ids of the policies that hold it back
    source         TEXT    NOT NULL DEFAULT '',         -- by which way it came: "grpc", "mcp"
    confirmed      INTEGER NOT NULL DEFAULT 0,          -- the person at the client of who asks has confirmed it
    create_time    INTEGER NOT NULL,                    -- Unix milliseconds, as every time here
    expire_time    INTEGER NOT NULL,
    end_time       INTEGER,
    cause          TEXT    NOT NULL DEFAULT '',
    job_id         TEXT    NOT NULL DEFAULT '',         -- of a job; it may not be in `jobs` yet, or never come there
    start_deadline INTEGER NOT NULL DEFAULT 0,          -- of a job: milliseconds from its release
    selector       TEXT    NOT NULL DEFAULT '',         -- of a grant, as what follows
    mode           TEXT    NOT NULL DEFAULT '',
    actions        TEXT    NOT NULL DEFAULT '[]',       -- JSON array of texts
    ttl            INTEGER NOT NULL DEFAULT 0,          -- milliseconds from its approval
    revoke_time    INTEGER,
    revoked_by     TEXT    NOT NULL DEFAULT ''
) STRICT;

CREATE INDEX approvals_by_time ON approvals (create_time);
CREATE INDEX approvals_open ON approvals (approval_id) WHERE state = 'awaiting';

-- Answers: each principal has one, and may turn an approval into a refusal while it is awaited.
CREATE TABLE approval_answers (
    approval_id TEXT    NOT NULL REFERENCES approvals ON DELETE CASCADE,
    principal   TEXT    NOT NULL,
    answer      TEXT    NOT NULL CHECK (answer IN ('approve', 'decline')),
    note        TEXT    NOT NULL DEFAULT '',
    time        INTEGER NOT NULL,
    PRIMARY KEY (approval_id, principal)
) STRICT, WITHOUT ROWID;
