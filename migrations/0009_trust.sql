-- Scopes narrow what a token's principal may do; locks of tokens come and go, while revoking is for good.
ALTER TABLE tokens ADD COLUMN scopes TEXT NOT NULL DEFAULT '[]';  -- JSON array; empty: all that the principal may
ALTER TABLE tokens ADD COLUMN lock_time INTEGER;
ALTER TABLE tokens ADD COLUMN lock_author TEXT;
ALTER TABLE tokens ADD COLUMN lock_note TEXT;

ALTER TABLE principals ADD COLUMN last_used_time INTEGER;         -- to about a minute

-- Operators join too. A check cannot be changed in place, so both tables are made anew; the referring one goes first.
CREATE TABLE join_tokens_anew (
    token_id    TEXT    PRIMARY KEY,
    hash        BLOB    NOT NULL UNIQUE,              -- SHA-256 of the secret
    kind        TEXT    NOT NULL CHECK (kind IN ('host', 'gateway', 'operator')),
    name        TEXT    NOT NULL DEFAULT '',          -- empty lets the joiner choose
    labels      TEXT    NOT NULL DEFAULT '{}',        -- JSON object of texts
    author      TEXT    NOT NULL,
    create_time INTEGER NOT NULL,
    expire_time INTEGER NOT NULL,
    uses        INTEGER NOT NULL DEFAULT 0 CHECK (uses <= uses_max),
    uses_max    INTEGER NOT NULL DEFAULT 1,
    revoke_time INTEGER,
    roles       TEXT    NOT NULL DEFAULT '[]'         -- JSON array: what an operator that is new gets
) STRICT, WITHOUT ROWID;

INSERT INTO join_tokens_anew (token_id, hash, kind, name, labels, author, create_time, expire_time, uses, uses_max, revoke_time)
    SELECT token_id, hash, kind, name, labels, author, create_time, expire_time, uses, uses_max, revoke_time FROM join_tokens;

CREATE TABLE enrollments_anew (
    token_id    TEXT    NOT NULL REFERENCES join_tokens_anew,
    key_hash    BLOB    NOT NULL,                     -- SHA-256 of the public key
    identity    TEXT    NOT NULL,                     -- 'host/h-…', 'gateway/local' or 'operator/ada'
    create_time INTEGER NOT NULL,
    PRIMARY KEY (token_id, key_hash)
) STRICT, WITHOUT ROWID;

INSERT INTO enrollments_anew SELECT token_id, key_hash, identity, create_time FROM enrollments;

DROP TABLE enrollments;
DROP TABLE join_tokens;
ALTER TABLE join_tokens_anew RENAME TO join_tokens;
ALTER TABLE enrollments_anew RENAME TO enrollments;

CREATE INDEX join_tokens_by_time ON join_tokens (create_time DESC, token_id DESC);

-- Which version of the authorities each host has taken.
CREATE TABLE authorities_taken (
    host_id TEXT    PRIMARY KEY,
    version INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
