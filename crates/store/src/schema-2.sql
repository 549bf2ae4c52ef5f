CREATE TABLE domains (
    host        TEXT NOT NULL,
    path        TEXT NOT NULL,
    environment TEXT NOT NULL REFERENCES environments (id) ON DELETE CASCADE,
    added       TEXT NOT NULL,            -- RFC 3339
    added_by    TEXT NOT NULL,            -- operation: what takes an addition back takes its own only
    leaving     TEXT,                     -- operation that removes it: nobody can have it before that has ended
    PRIMARY KEY (host, path)
) STRICT, WITHOUT ROWID;
CREATE INDEX domains_by_environment ON domains (environment);

CREATE TABLE swaps (
    first       TEXT NOT NULL REFERENCES environments (id) ON DELETE CASCADE,
    second      TEXT NOT NULL REFERENCES environments (id) ON DELETE CASCADE,
    document    TEXT NOT NULL,            -- domains of first and of second after their last swap
    PRIMARY KEY (first, second),
    CHECK (first < second)
) STRICT, WITHOUT ROWID;
CREATE INDEX swaps_by_second ON swaps (second);
