CREATE TABLE environments (
    id                TEXT PRIMARY KEY,
    name              TEXT NOT NULL UNIQUE,
    state             TEXT NOT NULL,
    outer             TEXT NOT NULL UNIQUE,
    outer6            TEXT UNIQUE,
    id_base           INTEGER NOT NULL UNIQUE,
    id_count          INTEGER NOT NULL CHECK (id_count > 0),
    parent            TEXT,               -- may be gone, hence no reference
    lineage_operation TEXT,               -- keeps the operation from being pruned
    document          TEXT NOT NULL       -- Environment
) STRICT, WITHOUT ROWID;
CREATE INDEX environments_by_parent ON environments (parent) WHERE parent IS NOT NULL;

CREATE TABLE ports (
    environment TEXT NOT NULL REFERENCES environments (id) ON DELETE CASCADE,
    host_ip     TEXT NOT NULL,
    host_port   INTEGER NOT NULL CHECK (host_port BETWEEN 1 AND 65535),
    protocol    TEXT NOT NULL,
    place       INTEGER NOT NULL,         -- order in the manifest
    document    TEXT NOT NULL,            -- PortBinding
    PRIMARY KEY (host_port, protocol, host_ip)
) STRICT, WITHOUT ROWID;
CREATE INDEX ports_by_environment ON ports (environment);

CREATE TABLE node_restarts (
    environment TEXT NOT NULL REFERENCES environments (id) ON DELETE CASCADE,
    node        TEXT NOT NULL,
    restarts    INTEGER NOT NULL,
    PRIMARY KEY (environment, node)
) STRICT, WITHOUT ROWID;

CREATE TABLE operations (
    id       TEXT PRIMARY KEY,            -- UUID v7: sorts by time
    ended    INTEGER NOT NULL CHECK (ended IN (0, 1)),
    cancel   INTEGER NOT NULL DEFAULT 0 CHECK (cancel IN (0, 1)),
    document TEXT NOT NULL,               -- Operation
    plan     TEXT NOT NULL                -- what it will do, fully decided; null once ended
) STRICT, WITHOUT ROWID;
CREATE INDEX operations_not_ended ON operations (id) WHERE ended = 0;

CREATE TABLE events (
    seq       INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given twice, even after pruning
    operation TEXT NOT NULL                       -- Operation as it was then
) STRICT;
