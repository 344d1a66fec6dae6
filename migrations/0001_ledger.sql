-- What this ledger is. One row.
CREATE TABLE ledger (
    one              INTEGER PRIMARY KEY CHECK (one = 1),
    control_plane_id TEXT    NOT NULL,  -- random, made with the ledger
    generation       TEXT    NOT NULL,  -- random, new at each restore
    starts           INTEGER NOT NULL,  -- how often it was opened; the high half of session epochs
    position         INTEGER NOT NULL   -- how many commits it has had; never falls within a generation
) STRICT;
