-- Join tokens, hashed: first trust for hosts and gateways.
CREATE TABLE join_tokens (
    token_id    TEXT    PRIMARY KEY,
    hash        BLOB    NOT NULL UNIQUE,              -- SHA-256 of the secret
    kind        TEXT    NOT NULL CHECK (kind IN ('host', 'gateway')),
    name        TEXT    NOT NULL DEFAULT '',          -- empty lets the joiner choose
    labels      TEXT    NOT NULL DEFAULT '{}',        -- JSON object of texts
    author      TEXT    NOT NULL,
    create_time INTEGER NOT NULL,
    expire_time INTEGER NOT NULL,
    uses        INTEGER NOT NULL DEFAULT 0 CHECK (uses <= uses_max),
    uses_max    INTEGER NOT NULL DEFAULT 1,
    revoke_time INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX join_tokens_by_time ON join_tokens (create_time DESC, token_id DESC);

-- Enrollments: which key came in by which token, so that a lost answer can be asked for again.
CREATE TABLE enrollments (
    token_id    TEXT    NOT NULL REFERENCES join_tokens,
    key_hash    BLOB    NOT NULL,                     -- SHA-256 of the public key
    identity    TEXT    NOT NULL,                     -- 'host/h-…' or 'gateway/local'
    create_time INTEGER NOT NULL,
    PRIMARY KEY (token_id, key_hash)
) STRICT, WITHOUT ROWID;
