ALTER TABLE domains ADD COLUMN https TEXT NOT NULL DEFAULT 'offer'; -- what requests without TLS get

ALTER TABLE redirects ADD COLUMN added TEXT NOT NULL DEFAULT '1970-01-01T00:00:00Z'; -- RFC 3339
ALTER TABLE redirects ADD COLUMN added_by TEXT NOT NULL DEFAULT ''; -- operation
CREATE INDEX redirects_by_environment ON redirects (environment);
