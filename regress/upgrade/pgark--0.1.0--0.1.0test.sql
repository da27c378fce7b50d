-- What an upgrade will look like, for the test of ALTER EXTENSION UPDATE: build-extension.sh installs it
-- with the profile dev alone.

\echo Use "ALTER EXTENSION pgark UPDATE TO '0.1.0test'" to load this file. \quit

ALTER TABLE pgark.config_component ADD COLUMN remark text;
COMMENT ON COLUMN pgark.config_component.remark IS 'of the test';

CREATE FUNCTION pgark.library_version() RETURNS text
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'version_wrapper';
COMMENT ON FUNCTION pgark.library_version() IS 'of the test';
REVOKE ALL ON FUNCTION pgark.library_version() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pgark.library_version() TO pgark_operator;
