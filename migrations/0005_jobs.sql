-- Jobs. The id follows from principal and request id, so a row is also the memory of its request.
--
-- Ids are digests, so what is ordered by them is written all over the place. Rows therefore lie in the order in
-- which they came, and indexes are few and narrow.
CREATE TABLE jobs (
    job_id              TEXT    NOT NULL PRIMARY KEY,
    principal           TEXT    NOT NULL,
    request_id          TEXT    NOT NULL,
    request_digest      BLOB    NOT NULL,             -- SHA-256 of the request
    selector            TEXT    NOT NULL,
    action              BLOB    NOT NULL,             -- muster.v1.Action
    create_time         INTEGER NOT NULL,             -- Unix milliseconds, as every time here
    start_deadline_time INTEGER NOT NULL,
    lost_after          INTEGER NOT NULL,             -- milliseconds
    cancel_time         INTEGER,
    cancelled_by        TEXT    NOT NULL DEFAULT '',
    note                TEXT    NOT NULL DEFAULT '',
    state               TEXT    NOT NULL CHECK (state IN ('pending', 'running', 'succeeded', 'failed', 'cancelled')),
    start_time          INTEGER,
    end_time            INTEGER
) STRICT;

CREATE INDEX jobs_by_time ON jobs (create_time);
CREATE INDEX jobs_open ON jobs (job_id) WHERE state IN ('pending', 'running');

-- Tasks: one row for each job on each host. Rows are history; only the sweeper deletes them, with their job.
CREATE TABLE tasks (
    task_id         TEXT    NOT NULL PRIMARY KEY,
    job_id          TEXT    NOT NULL REFERENCES jobs ON DELETE CASCADE,
    ordinal         INTEGER NOT NULL,                 -- place in the job, from 0, by host name
    host_id         TEXT    NOT NULL,
    host_name       TEXT    NOT NULL,                 -- when the job was created
    create_time     INTEGER NOT NULL,                 -- its job's
    state           TEXT    NOT NULL CHECK (state IN ('awaiting_approval', 'pending', 'running', 'succeeded',
                        'failed', 'rejected', 'expired', 'timed_out', 'cancelled', 'lost')),
    reason          INTEGER NOT NULL DEFAULT 0,       -- muster.v1.Reason
    message         TEXT    NOT NULL DEFAULT '',
    state_time      INTEGER NOT NULL,
    offered_boot    TEXT,                             -- boot and journal under which it may have been offered;
    offered_journal TEXT,                             -- NULL: it never left the control plane
    start_time      INTEGER,
    end_time        INTEGER,
    exit_code       INTEGER,
    signal          TEXT    NOT NULL DEFAULT '',
    run_time        INTEGER,                          -- microseconds, by the host's own clock
    output_end      INTEGER,                          -- last sequence, once the host has said it
    output_complete INTEGER NOT NULL DEFAULT 0,
    stdout_bytes    INTEGER NOT NULL DEFAULT 0,
    stderr_bytes    INTEGER NOT NULL DEFAULT 0,
    dropped_bytes   INTEGER NOT NULL DEFAULT 0,
    last_sequence   INTEGER NOT NULL DEFAULT 0,
    cancel_time     INTEGER,
    cancel_grace    INTEGER,                          -- milliseconds; NULL: as the action says
    late_result     TEXT    NOT NULL DEFAULT '',
    UNIQUE (job_id, ordinal)
) STRICT;

CREATE INDEX tasks_by_host ON tasks (host_id, create_time);
CREATE INDEX tasks_by_time ON tasks (create_time);
CREATE INDEX tasks_owing_output ON tasks (job_id) WHERE output_complete = 0;
