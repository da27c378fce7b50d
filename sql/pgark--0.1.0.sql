-- pgark 0.1.0: the SQL contract of the extension, written by hand.
--
-- Every name is qualified and nothing is replaced, so that objects planted in the schema before
-- CREATE EXTENSION make it fail instead of being taken over. C symbols end in _wrapper: that is how
-- pgrx exports them.

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION pgark" to load this file. \quit

CREATE SCHEMA pgark;
COMMENT ON SCHEMA pgark IS 'backups and point-in-time recovery (extension pgark)';

CREATE FUNCTION pgark.version() RETURNS pg_catalog.text
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'version_wrapper';
COMMENT ON FUNCTION pgark.version() IS
    'version of pgark''s shared library; pg_extension.extversion is that of its SQL objects';

-- Whoever may look at the extension at all may ask for its version; what comes later is granted
-- to named roles only.
GRANT USAGE ON SCHEMA pgark TO PUBLIC;
REVOKE ALL ON FUNCTION pgark.version() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pgark.version() TO PUBLIC;
