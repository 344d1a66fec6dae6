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
    uses        INTEGER NOT NULL DEFAULT 0,
    uses_max    INTEGER NOT NULL DEFAULT 1,
    used_by_key BLOB,                                 -- SHA-256 of the last public key that used it
    used_for    TEXT,                                 -- the identity that use made
    revoke_time INTEGER
) STRICT, WITHOUT ROWID;
