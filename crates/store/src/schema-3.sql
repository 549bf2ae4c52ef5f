CREATE TABLE certificates (
    id          TEXT NOT NULL PRIMARY KEY, -- also the name of its files
    document    TEXT NOT NULL              -- JSON: names, who issued it, until when, how it is renewed; never the key
) STRICT, WITHOUT ROWID;

CREATE TABLE policies (
    environment TEXT NOT NULL PRIMARY KEY REFERENCES environments (id) ON DELETE CASCADE,
    document    TEXT NOT NULL              -- JSON: offshoot_model::traffic::Policy, environments by id
) STRICT, WITHOUT ROWID;

CREATE TABLE redirects (
    host        TEXT NOT NULL PRIMARY KEY, -- a former default domain
    environment TEXT NOT NULL REFERENCES environments (id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
