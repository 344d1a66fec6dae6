-- Principals: whoever may ask. Hosts are in `hosts`.
CREATE TABLE principals (
    principal   TEXT    PRIMARY KEY,              -- 'operator/ada', 'ai/claude', 'gateway/local', …
    owner       TEXT    NOT NULL DEFAULT '',      -- the operator that owns an ai
    create_time INTEGER NOT NULL,
    lock_time   INTEGER,
    lock_author TEXT,
    lock_note   TEXT
) STRICT, WITHOUT ROWID;

-- Bearer tokens, hashed.
CREATE TABLE tokens (
    token_id    TEXT    PRIMARY KEY,
    hash        BLOB    NOT NULL UNIQUE,          -- SHA-256 of the secret
    principal   TEXT    NOT NULL REFERENCES principals,
    author      TEXT    NOT NULL,
    create_time INTEGER NOT NULL,
    expire_time INTEGER NOT NULL,
    revoke_time INTEGER,
    last_used_time INTEGER                        -- to about a minute
) STRICT, WITHOUT ROWID;
