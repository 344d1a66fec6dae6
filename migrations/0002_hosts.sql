-- Hosts: the inventory. A removed host keeps its row, so that its id stays retired.
CREATE TABLE hosts (
    host_id                 TEXT    PRIMARY KEY,
    name                    TEXT    NOT NULL,
    labels                  TEXT    NOT NULL DEFAULT '{}',  -- JSON object of texts
    facts                   TEXT,                           -- JSON; NULL before the first attach
    create_time             INTEGER NOT NULL,               -- Unix milliseconds, as every time here
    remove_time             INTEGER,
    last_heard_time         INTEGER,
    certificate_expire_time INTEGER,
    lock_time               INTEGER,                        -- set while it is locked
    lock_author             TEXT,
    lock_note               TEXT,
    identity_conflict       TEXT    NOT NULL DEFAULT ''     -- what was seen; set aside while not empty
) STRICT;

CREATE UNIQUE INDEX hosts_by_name ON hosts (name) WHERE remove_time IS NULL;

-- Instructions: every version that ever stood; the highest one stands.
CREATE TABLE instructions (
    host_id     TEXT    NOT NULL REFERENCES hosts,
    version     INTEGER NOT NULL,
    text        TEXT    NOT NULL,
    author      TEXT    NOT NULL,
    create_time INTEGER NOT NULL,
    PRIMARY KEY (host_id, version)
) STRICT, WITHOUT ROWID;

-- Fences: what was last heard of a host's boot and journal. Offers are judged by it.
CREATE TABLE fences (
    host_id          TEXT    PRIMARY KEY,
    boot_id          TEXT    NOT NULL,
    journal_id       TEXT    NOT NULL,
    journal_position INTEGER NOT NULL  -- the highest ever heard of this journal
) STRICT, WITHOUT ROWID;
