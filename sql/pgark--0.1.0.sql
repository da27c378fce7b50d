-- pgark 0.1.0: the SQL contract of the extension, written by hand.
--
-- Tables come in three kinds, told by their prefix: config_* is what users configured, and the only
-- thing that pg_dump saves; queue_* is work under way; catalog_* is a cache of the repository that the
-- agent fills, and can be emptied at any time. Views and functions without a prefix are for people;
-- functions for the agent alone are granted to pgark_agent.
--
-- Every name is qualified and nothing is replaced, so that objects planted in the schema before
-- CREATE EXTENSION make it fail instead of being taken over; built-in names need no qualification,
-- since the script runs with search_path pg_catalog, pg_temp. C symbols end in _wrapper: that is how
-- pgrx exports them.

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION pgark" to load this file. \quit

CREATE SCHEMA pgark;
COMMENT ON SCHEMA pgark IS 'backups and point-in-time recovery (extension pgark)';

-- Roles are cluster-wide and no members of the extension: DROP EXTENSION leaves them.
DO $roles$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'pgark_operator') THEN
        CREATE ROLE pgark_operator NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'pgark_agent') THEN
        CREATE ROLE pgark_agent NOLOGIN;
    END IF;
END
$roles$;

----------------------------------------------------------------------------------------------------
-- What is computed in the shared library. None of these reads or writes a table.
----------------------------------------------------------------------------------------------------

CREATE FUNCTION pgark.version() RETURNS text
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'version_wrapper';
COMMENT ON FUNCTION pgark.version() IS
    'version of pgark''s shared library; pg_extension.extversion is that of its SQL objects';

CREATE FUNCTION pgark.check_database() RETURNS void
    LANGUAGE c STABLE STRICT
    AS 'MODULE_PATHNAME', 'check_database_wrapper';
COMMENT ON FUNCTION pgark.check_database() IS
    'raises an error in any database but the one that pgark.database names';

-- From here on the library is loaded and its settings exist; in another database nothing is made.
SELECT pgark.check_database();

CREATE FUNCTION pgark.new_ulid() RETURNS text
    LANGUAGE c VOLATILE STRICT
    AS 'MODULE_PATHNAME', 'new_ulid_wrapper';
COMMENT ON FUNCTION pgark.new_ulid() IS
    'a new ULID: 26 characters, ordered by time';

CREATE FUNCTION pgark.check_schedule(definition text) RETURNS text
    LANGUAGE c STABLE STRICT
    AS 'MODULE_PATHNAME', 'check_schedule_wrapper';
COMMENT ON FUNCTION pgark.check_schedule(text) IS
    'checks the definition of a schedule (cron, zone, action, options) and returns it in its canonical form';

CREATE FUNCTION pgark.schedule_due(definition text, after timestamptz, upto timestamptz) RETURNS timestamptz
    LANGUAGE c STABLE STRICT
    AS 'MODULE_PATHNAME', 'schedule_due_wrapper';
COMMENT ON FUNCTION pgark.schedule_due(text, timestamptz, timestamptz) IS
    'the last instant after the first and up to the second one at which a schedule is due, or NULL';

CREATE FUNCTION pgark.schedule_next(definition text, after timestamptz) RETURNS timestamptz
    LANGUAGE c STABLE STRICT
    AS 'MODULE_PATHNAME', 'schedule_next_wrapper';
COMMENT ON FUNCTION pgark.schedule_next(text, timestamptz) IS
    'the first instant after the given one at which a schedule is due, or NULL';

CREATE FUNCTION pgark.check_job_options(action text, options text) RETURNS text
    LANGUAGE c STABLE STRICT
    AS 'MODULE_PATHNAME', 'check_job_options_wrapper';
COMMENT ON FUNCTION pgark.check_job_options(text, text) IS
    'checks the options of a job against the list of what its action allows and returns them in their canonical form';

CREATE FUNCTION pgark.check_retention(policy text) RETURNS text
    LANGUAGE c STABLE STRICT
    AS 'MODULE_PATHNAME', 'check_retention_wrapper';
COMMENT ON FUNCTION pgark.check_retention(text) IS
    'checks a retention policy and returns it in its canonical form';

CREATE FUNCTION pgark.decide_retention(policy text, history text, now timestamptz)
    RETURNS TABLE (object text, first text, last text, keep boolean, reasons text)
    LANGUAGE c STABLE STRICT
    AS 'MODULE_PATHNAME', 'decide_retention_wrapper';
COMMENT ON FUNCTION pgark.decide_retention(text, text, timestamptz) IS
    'what a retention policy keeps of a history (backups and stretches of WAL), and why';

CREATE FUNCTION pgark.plan_restore(history text, target text)
    RETURNS TABLE (backup text, timeline integer, first_wal text, last_wal text, segments bigint,
                   missing_wal text, problem text)
    LANGUAGE c STABLE STRICT
    AS 'MODULE_PATHNAME', 'plan_restore_wrapper';
COMMENT ON FUNCTION pgark.plan_restore(text, text) IS
    'which backup and which WAL of a history lead to a recovery target, or what the problem is';

CREATE FUNCTION pgark.shell_quote(word text) RETURNS text
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'shell_quote_wrapper';
COMMENT ON FUNCTION pgark.shell_quote(text) IS
    'a text as one word of a POSIX shell; control characters are refused';

CREATE FUNCTION pgark.in_transaction_block() RETURNS boolean
    LANGUAGE c STABLE STRICT
    AS 'MODULE_PATHNAME', 'in_transaction_block_wrapper';
COMMENT ON FUNCTION pgark.in_transaction_block() IS
    'whether the procedure that asks cannot commit: between BEGIN and COMMIT, or called by a function';

CREATE FUNCTION pgark.is_preloaded() RETURNS boolean
    LANGUAGE c STABLE STRICT
    AS 'MODULE_PATHNAME', 'is_preloaded_wrapper';
COMMENT ON FUNCTION pgark.is_preloaded() IS
    'whether pgark stands in shared_preload_libraries: the background worker and progress need that, nothing else does';

CREATE FUNCTION pgark.set_progress(job_id bigint, phase text, backup_total bigint, backup_streamed bigint,
        tablespaces_total bigint, tablespaces_streamed bigint, bytes_stored bigint) RETURNS boolean
    LANGUAGE c VOLATILE
    AS 'MODULE_PATHNAME', 'set_progress_wrapper';
COMMENT ON FUNCTION pgark.set_progress(bigint, text, bigint, bigint, bigint, bigint, bigint) IS
    'keeps a job''s progress in shared memory; a NULL phase gives its slot back; false when there is no slot';

CREATE FUNCTION pgark.progress()
    RETURNS TABLE (job_id bigint, phase text, backup_total bigint, backup_streamed bigint,
                   tablespaces_total bigint, tablespaces_streamed bigint, bytes_stored bigint,
                   updated_at timestamptz)
    LANGUAGE c VOLATILE STRICT
    AS 'MODULE_PATHNAME', 'progress_wrapper';
COMMENT ON FUNCTION pgark.progress() IS
    'the progress slots in shared memory; none without shared_preload_libraries';

CREATE FUNCTION pgark.note_tick(source text) RETURNS text
    LANGUAGE c VOLATILE STRICT
    AS 'MODULE_PATHNAME', 'note_tick_wrapper';
COMMENT ON FUNCTION pgark.note_tick(text) IS
    'notes in shared memory who evaluates the schedules, and returns who else did within 90 seconds, or NULL';

----------------------------------------------------------------------------------------------------
-- Configuration: what users own. pg_dump saves it.
----------------------------------------------------------------------------------------------------

-- A row holds what was asked for (definition) and what holds (effective): a change takes effect when
-- the agent has put it into the repository.
CREATE TABLE pgark.config_schedule (
    id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    definition jsonb NOT NULL,
    dropped boolean NOT NULL DEFAULT false,
    version bigint NOT NULL,
    changed_by name NOT NULL,
    changed_at timestamptz NOT NULL,
    effective jsonb,
    effective_at timestamptz
);
COMMENT ON TABLE pgark.config_schedule IS 'schedules, as asked for and as they hold; see the view schedule';
COMMENT ON COLUMN pgark.config_schedule.definition IS 'as asked for: pgark_types::schedule::Definition';
COMMENT ON COLUMN pgark.config_schedule.dropped IS 'asked to go; goes when the agent has put that into the repository';
COMMENT ON COLUMN pgark.config_schedule.version IS 'the change of policy that made this row what it is';
COMMENT ON COLUMN pgark.config_schedule.effective IS 'as it holds; NULL until the agent has put it into the repository. From a dump: as it held there';

CREATE TABLE pgark.config_retention (
    id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    component text NOT NULL,
    repository text,
    policy jsonb NOT NULL,
    version bigint NOT NULL,
    changed_by name NOT NULL,
    changed_at timestamptz NOT NULL,
    effective jsonb,
    effective_at timestamptz,
    UNIQUE NULLS NOT DISTINCT (component, repository)
);
COMMENT ON TABLE pgark.config_retention IS 'retention policies, as asked for and as they hold; see the view retention';
COMMENT ON COLUMN pgark.config_retention.repository IS 'NULL: every repository that has no row of its own';
COMMENT ON COLUMN pgark.config_retention.policy IS 'as asked for: pgark_types::retention::RetentionPolicy';
COMMENT ON COLUMN pgark.config_retention.effective IS 'as it holds; NULL until the agent has put it into the repository';

CREATE TABLE pgark.config_component (
    component text PRIMARY KEY,
    backup_age_max interval NOT NULL CHECK (backup_age_max > interval '0' AND backup_age_max <= interval '100 years'),
    changed_by name NOT NULL,
    changed_at timestamptz NOT NULL
);
COMMENT ON TABLE pgark.config_component IS 'settings of components; see set_component()';
COMMENT ON COLUMN pgark.config_component.backup_age_max IS 'health() warns when the newest backup is older';

SELECT pg_extension_config_dump('pgark.config_schedule', '');
SELECT pg_extension_config_dump('pgark.config_schedule_id_seq', '');
SELECT pg_extension_config_dump('pgark.config_retention', '');
SELECT pg_extension_config_dump('pgark.config_retention_id_seq', '');
SELECT pg_extension_config_dump('pgark.config_component', '');

----------------------------------------------------------------------------------------------------
-- The queue: work under way. Not saved by pg_dump.
----------------------------------------------------------------------------------------------------

-- One row. Changes of policy take its lock, so that versions become visible in their order.
CREATE TABLE pgark.queue_policy (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version bigint NOT NULL DEFAULT 0,
    stored_version bigint NOT NULL DEFAULT 0,
    stored_at timestamptz,
    reference jsonb,
    dumped_version bigint NOT NULL DEFAULT 0
);
COMMENT ON TABLE pgark.queue_policy IS 'how far the policy (schedules, retention) has been put into the repository';
COMMENT ON COLUMN pgark.queue_policy.version IS 'of the newest change';
COMMENT ON COLUMN pgark.queue_policy.stored_version IS 'the newest change that is in the repository';
COMMENT ON COLUMN pgark.queue_policy.reference IS 'the agent''s note of the repository''s records that this agrees with';
COMMENT ON COLUMN pgark.queue_policy.dumped_version IS 'what was there before the first change, up to this version, came with a dump';
INSERT INTO pgark.queue_policy DEFAULT VALUES;

CREATE TABLE pgark.queue_job (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    ulid text NOT NULL UNIQUE,
    action text NOT NULL CHECK (action IN ('backup', 'verify', 'expire', 'gc', 'restore')),
    components text[],
    repository text,
    options jsonb NOT NULL DEFAULT '{}',
    state text NOT NULL DEFAULT 'queued'
        CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'canceled', 'orphaned')),
    requested_by name NOT NULL,
    requested_at timestamptz NOT NULL,
    requested_xid xid8 NOT NULL,
    schedule text,
    due_at timestamptz,
    system_identifier bigint NOT NULL,
    timeline integer NOT NULL,
    not_before timestamptz,
    attempts integer NOT NULL DEFAULT 0,
    attempts_max integer NOT NULL CHECK (attempts_max BETWEEN 1 AND 100),
    node text,
    claim text,
    started_at timestamptz,
    heartbeat_at timestamptz,
    lease_expires_at timestamptz,
    cancel_requested_at timestamptz,
    cancel_requested_by name,
    cancel_requested_xid xid8,
    finished_at timestamptz,
    label text,
    result jsonb,
    error_code text,
    error_message text,
    error_detail text,
    error_hint text,
    CHECK ((schedule IS NULL) = (due_at IS NULL)),
    CHECK ((state = 'running') = (claim IS NOT NULL)),
    CHECK ((state IN ('queued', 'running')) = (finished_at IS NULL))
);
COMMENT ON TABLE pgark.queue_job IS 'jobs and their states; see the view job';
COMMENT ON COLUMN pgark.queue_job.ulid IS 'names the job in the repository: what it made there says which job it was';
COMMENT ON COLUMN pgark.queue_job.components IS 'components or groups; NULL: everything';
COMMENT ON COLUMN pgark.queue_job.requested_xid IS 'the transaction that asked; wait() refuses to wait for its own';
COMMENT ON COLUMN pgark.queue_job.cancel_requested_xid IS 'the transaction that asked to cancel it; wait() refuses to wait for its own';
COMMENT ON COLUMN pgark.queue_job.timeline IS 'the timeline that the job belongs to: another one hands it to nobody';
COMMENT ON COLUMN pgark.queue_job.not_before IS 'when it may be claimed again after a failed attempt';
COMMENT ON COLUMN pgark.queue_job.claim IS 'a token of this attempt: heartbeat and finish of an older one are refused';
COMMENT ON COLUMN pgark.queue_job.label IS 'of the backup or backup set that it made';
-- What may be claimed or may have lost its lease: small whatever the table has become.
CREATE INDEX queue_job_open ON pgark.queue_job (id) WHERE state IN ('queued', 'running');
CREATE INDEX queue_job_schedule ON pgark.queue_job (schedule, due_at) WHERE schedule IS NOT NULL;
CREATE INDEX queue_job_finished ON pgark.queue_job (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE pgark.queue_occurrence (
    schedule text NOT NULL,
    due_at timestamptz NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('queued', 'skipped', 'overlapped', 'elsewhere')),
    job_id bigint,
    source text NOT NULL,
    decided_at timestamptz NOT NULL,
    PRIMARY KEY (schedule, due_at)
);
COMMENT ON TABLE pgark.queue_occurrence IS
    'what became of each instant at which a schedule was due: one row decides it once';
COMMENT ON COLUMN pgark.queue_occurrence.outcome IS
    'queued: job_id; skipped: missed, and missed = skip; overlapped: the job before was not done; elsewhere: the agent ran it while the server was down';
COMMENT ON COLUMN pgark.queue_occurrence.source IS 'who evaluated the schedule: pg_cron, worker, agent, tick';

CREATE TABLE pgark.queue_agent (
    node text PRIMARY KEY,
    version text NOT NULL,
    started_at timestamptz NOT NULL,
    registered_at timestamptz NOT NULL
);
COMMENT ON TABLE pgark.queue_agent IS 'agents that have connected';

----------------------------------------------------------------------------------------------------
-- The catalog: what the agent found in the repositories. A cache; pgark_agent writes it.
----------------------------------------------------------------------------------------------------

CREATE TABLE pgark.catalog_repository (
    name text PRIMARY KEY,
    kind text NOT NULL,
    required boolean NOT NULL,
    state text NOT NULL CHECK (state IN ('ok', 'unavailable', 'damaged')),
    detail text,
    hint text,
    backup_count bigint,
    object_count bigint,
    stored_bytes bigint,
    last_verified_at timestamptz,
    checked_at timestamptz NOT NULL
);
COMMENT ON TABLE pgark.catalog_repository IS 'repositories of the agent''s configuration and how they were found';
COMMENT ON COLUMN pgark.catalog_repository.backup_count IS 'live backups of all components';

CREATE TABLE pgark.catalog_component (
    name text PRIMARY KEY,
    kind text NOT NULL,
    stage text NOT NULL CHECK (stage IN ('cluster', 'derived', 'blob')),
    node text NOT NULL,
    groups text[] NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE pgark.catalog_component IS 'components of the agent''s configuration; the Postgres cluster has kind postgres';
COMMENT ON COLUMN pgark.catalog_component.stage IS
    'when it is captured within a backup set, by its driver: derived from Postgres before, blobs that Postgres refers to after it';

CREATE TABLE pgark.catalog_cluster (
    repository text NOT NULL,
    component text NOT NULL,
    system_identifier bigint NOT NULL,
    segment_bytes bigint NOT NULL,
    is_current boolean NOT NULL,
    PRIMARY KEY (repository, component, system_identifier)
);
COMMENT ON TABLE pgark.catalog_cluster IS 'the clusters that a component''s name has stood for: pg_upgrade makes another one';
COMMENT ON COLUMN pgark.catalog_cluster.system_identifier IS 'as pg_control_system() gives it: signed';

CREATE TABLE pgark.catalog_timeline (
    repository text NOT NULL,
    system_identifier bigint NOT NULL,
    timeline integer NOT NULL,
    ancestors jsonb,
    newest_at timestamptz,
    covered_until timestamptz,
    covered_lsn pg_lsn,
    begun_at timestamptz,
    PRIMARY KEY (repository, system_identifier, timeline)
);
COMMENT ON TABLE pgark.catalog_timeline IS 'timelines with stored WAL';
COMMENT ON COLUMN pgark.catalog_timeline.ancestors IS
    'from the history file, oldest first: [{"timeline": 1, "switch": "0/3000000"}]; NULL: the file is missing';
COMMENT ON COLUMN pgark.catalog_timeline.newest_at IS 'when its newest segment was stored';
COMMENT ON COLUMN pgark.catalog_timeline.covered_until IS 'newest instant of the database''s clock whose WAL is stored';
COMMENT ON COLUMN pgark.catalog_timeline.begun_at IS 'when its history file, or the oldest segment that is still there, was stored';

CREATE TABLE pgark.catalog_wal_range (
    repository text NOT NULL,
    system_identifier bigint NOT NULL,
    timeline integer NOT NULL,
    first_wal text NOT NULL,
    last_wal text NOT NULL,
    segments bigint NOT NULL,
    next_first_wal text,
    PRIMARY KEY (repository, system_identifier, timeline, first_wal)
);
COMMENT ON TABLE pgark.catalog_wal_range IS 'runs of stored WAL segments without a gap';
COMMENT ON COLUMN pgark.catalog_wal_range.next_first_wal IS 'where WAL goes on after the gap that follows; NULL: none follows';
CREATE INDEX catalog_wal_range_newest ON pgark.catalog_wal_range (first_wal DESC);

CREATE TABLE pgark.catalog_backup (
    component text NOT NULL,
    label text NOT NULL,
    repository text NOT NULL,
    kind text NOT NULL,
    state text NOT NULL CHECK (state IN ('live', 'expired', 'damaged')),
    started_at timestamptz NOT NULL,
    stopped_at timestamptz NOT NULL,
    system_identifier bigint,
    timeline integer,
    start_lsn pg_lsn,
    stop_lsn pg_lsn,
    bytes_source bigint NOT NULL,
    bytes_stored bigint NOT NULL,
    root_digest text,
    corrupt_pages bigint NOT NULL DEFAULT 0,
    consistency text,
    safety boolean NOT NULL DEFAULT false,
    set_label text,
    job_ulid text,
    node text,
    annotations jsonb NOT NULL DEFAULT '{}',
    pin_reason text,
    pin_until timestamptz,
    PRIMARY KEY (component, label, repository)
);
COMMENT ON TABLE pgark.catalog_backup IS 'backups of all components, once for each repository that has them';
COMMENT ON COLUMN pgark.catalog_backup.state IS 'expired: can be undeleted until gc removes it';
COMMENT ON COLUMN pgark.catalog_backup.safety IS 'of what a restore replaced: chosen only by its label';
COMMENT ON COLUMN pgark.catalog_backup.pin_reason IS 'NULL: not pinned';
CREATE INDEX catalog_backup_newest ON pgark.catalog_backup (component, repository, stopped_at DESC) WHERE state = 'live' AND NOT safety;
CREATE INDEX catalog_backup_time ON pgark.catalog_backup (stopped_at DESC);
CREATE INDEX catalog_backup_job ON pgark.catalog_backup (job_ulid) WHERE job_ulid IS NOT NULL;

CREATE TABLE pgark.catalog_backup_set (
    label text NOT NULL,
    repository text NOT NULL,
    started_at timestamptz NOT NULL,
    stopped_at timestamptz NOT NULL,
    begin_lsn pg_lsn,
    end_lsn pg_lsn,
    quiesce text,
    consistency text,
    complete boolean NOT NULL,
    members jsonb NOT NULL,
    job_ulid text,
    PRIMARY KEY (label, repository)
);
COMMENT ON TABLE pgark.catalog_backup_set IS 'backups of several components taken together';
COMMENT ON COLUMN pgark.catalog_backup_set.members IS '[{"component", "label", "outcome", "code", "detail"}]';
CREATE INDEX catalog_backup_set_time ON pgark.catalog_backup_set (stopped_at DESC);

CREATE TABLE pgark.catalog_recovery_window (
    repository text NOT NULL,
    component text NOT NULL,
    system_identifier bigint NOT NULL,
    timeline integer NOT NULL,
    from_time timestamptz NOT NULL,
    to_time timestamptz,
    from_lsn pg_lsn NOT NULL,
    to_lsn pg_lsn,
    PRIMARY KEY (repository, component, system_identifier, timeline, from_lsn)
);
COMMENT ON TABLE pgark.catalog_recovery_window IS 'moments that a recovery can reach, by timeline';
COMMENT ON COLUMN pgark.catalog_recovery_window.to_time IS 'NULL: not known';
CREATE INDEX catalog_recovery_window_from ON pgark.catalog_recovery_window (repository, from_time);
CREATE INDEX catalog_recovery_window_to ON pgark.catalog_recovery_window (repository, to_time);

CREATE TABLE pgark.catalog_restore_point (
    system_identifier bigint NOT NULL,
    timeline integer NOT NULL,
    lsn pg_lsn NOT NULL,
    name text NOT NULL,
    marked_at timestamptz NOT NULL,
    PRIMARY KEY (system_identifier, timeline, lsn)
);
COMMENT ON TABLE pgark.catalog_restore_point IS 'restore points, from mark() and from what the agent found in WAL';
CREATE INDEX catalog_restore_point_time ON pgark.catalog_restore_point (marked_at DESC);
CREATE INDEX catalog_restore_point_name ON pgark.catalog_restore_point (name, marked_at DESC);

CREATE TABLE pgark.catalog_alert (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    code text NOT NULL,
    severity text NOT NULL CHECK (severity IN ('warning', 'critical')),
    component text,
    repository text,
    object text,
    message text NOT NULL,
    detail text,
    hint text,
    count bigint NOT NULL DEFAULT 1,
    raised_at timestamptz NOT NULL,
    seen_at timestamptz NOT NULL,
    cleared_at timestamptz
);
COMMENT ON TABLE pgark.catalog_alert IS 'alerts of the agent; cleared_at is NULL while one holds';
CREATE UNIQUE INDEX catalog_alert_open ON pgark.catalog_alert (code, component, repository, object)
    NULLS NOT DISTINCT WHERE cleared_at IS NULL;

CREATE TABLE pgark.catalog_audit (
    ulid text PRIMARY KEY,
    at timestamptz NOT NULL,
    actor text NOT NULL,
    node text,
    action text NOT NULL,
    object text,
    detail jsonb NOT NULL DEFAULT '{}',
    stored boolean NOT NULL
);
COMMENT ON TABLE pgark.catalog_audit IS 'who did what: what came over SQL, and what the agent found in the repository';
COMMENT ON COLUMN pgark.catalog_audit.stored IS 'whether it is in the repository; the agent puts what is not';
CREATE INDEX catalog_audit_new ON pgark.catalog_audit (ulid) WHERE NOT stored;
CREATE INDEX catalog_audit_time ON pgark.catalog_audit (at DESC);

----------------------------------------------------------------------------------------------------
-- Within: what the functions below share. Granted to nobody.
----------------------------------------------------------------------------------------------------

CREATE FUNCTION pgark.requester() RETURNS name
    LANGUAGE sql STABLE PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
    AS $$
        -- Within SECURITY DEFINER current_user is the owner; SET ROLE shows in the setting.
        SELECT CASE current_setting('role') WHEN 'none' THEN session_user::name
                    ELSE current_setting('role')::name END
    $$;
COMMENT ON FUNCTION pgark.requester() IS 'the role that the session acts as';

CREATE FUNCTION pgark.identity(OUT system_identifier bigint, OUT timeline integer) RETURNS record
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        IF pg_is_in_recovery() THEN
            RAISE EXCEPTION USING ERRCODE = 'read_only_sql_transaction',
                MESSAGE = 'cannot work on jobs and schedules during recovery',
                DETAIL = 'This server is a standby, or still recovering.',
                HINT = 'Connect to the primary.';
        END IF;
        SELECT s.system_identifier INTO system_identifier FROM pg_control_system() AS s;
        -- pg_control has the old timeline until the first checkpoint after a promotion.
        timeline := ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::integer;
    END
    $$;
COMMENT ON FUNCTION pgark.identity() IS 'system identifier and timeline of this server; an error during recovery';

CREATE FUNCTION pgark.setting_interval(name text) RETURNS interval
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    -- Postgres prints minutes as "min", hours as "h" and days as "d", and interval reads all of them.
    AS $$ SELECT current_setting('pgark.' || name)::interval $$;
COMMENT ON FUNCTION pgark.setting_interval(text) IS 'a setting of pgark''s that is a time';

CREATE FUNCTION pgark.audit(action text, object text, detail jsonb) RETURNS void
    LANGUAGE sql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
        INSERT INTO pgark.catalog_audit (ulid, at, actor, action, object, detail, stored)
        VALUES (pgark.new_ulid(), clock_timestamp(), pgark.requester(), action, object, coalesce(detail, '{}'), false)
    $$;
COMMENT ON FUNCTION pgark.audit(text, text, jsonb) IS 'notes who did what; the agent puts it into the repository';

CREATE FUNCTION pgark.check_name(what text, name text) RETURNS void
    LANGUAGE plpgsql IMMUTABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        IF name IS NULL OR name !~ '^[a-z0-9][a-z0-9_.-]{0,62}$' COLLATE "C" THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_name',
                MESSAGE = format('invalid name of a %s: "%s"', what, coalesce(left(name, 80), 'NULL')),
                DETAIL = 'A name has 1 to 63 lower-case letters, digits, underscores, dots and hyphens, and begins with a letter or digit.',
                HINT = 'Choose another name.';
        END IF;
    END
    $$;
COMMENT ON FUNCTION pgark.check_name(text, text) IS 'refuses names that could not be part of an object''s key in a repository';

CREATE FUNCTION pgark.check_components(components text[]) RETURNS text[]
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        unknown text;
    BEGIN
        IF components IS NULL THEN
            RETURN NULL;
        END IF;
        IF cardinality(components) NOT BETWEEN 1 AND 1000 OR array_ndims(components) <> 1 THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = 'invalid list of components',
                DETAIL = format('It has %s elements; 1 to 1000 in one dimension are allowed.', cardinality(components)),
                HINT = 'Leave it out, or pass NULL, for every component.';
        END IF;
        SELECT coalesce(left(c, 80), 'NULL') INTO unknown FROM unnest(components) AS c
            WHERE c IS NULL OR NOT EXISTS (
                SELECT FROM pgark.catalog_component AS k WHERE k.name = c OR c = ANY (k.groups))
            LIMIT 1;
        IF FOUND AND NOT EXISTS (SELECT FROM pgark.catalog_component) THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = 'no component is known yet',
                DETAIL = 'The agent tells which components its configuration has when it connects; it never has.',
                HINT = 'Start it: pgark agent. Without a list of components, everything is meant.';
        ELSIF FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'undefined_object',
                MESSAGE = format('component or group "%s" does not exist', unknown),
                DETAIL = 'The agent''s configuration has no section [component] or [group] of this name.',
                HINT = 'SELECT name, kind, groups FROM pgark.component;';
        END IF;
        RETURN ARRAY (SELECT DISTINCT c FROM unnest(components) AS c ORDER BY c);
    END
    $$;
COMMENT ON FUNCTION pgark.check_components(text[]) IS 'refuses components and groups that the agent''s configuration does not have';

CREATE FUNCTION pgark.check_repository(repository text) RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        IF repository IS NULL OR EXISTS (SELECT FROM pgark.catalog_repository AS r WHERE r.name = repository) THEN
            RETURN;
        END IF;
        IF NOT EXISTS (SELECT FROM pgark.catalog_repository) THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = 'no repository is known yet',
                DETAIL = 'The agent tells which repositories its configuration has when it connects; it never has.',
                HINT = 'Start it: pgark agent. Without a repository, every one is meant.';
        END IF;
        RAISE EXCEPTION USING ERRCODE = 'undefined_object',
            MESSAGE = format('repository "%s" does not exist', left(repository, 80)),
            DETAIL = 'The agent''s configuration has no section [repository] of this name.',
            HINT = 'SELECT name, kind FROM pgark.stat_repository;';
    END
    $$;
COMMENT ON FUNCTION pgark.check_repository(text) IS 'refuses repositories that the agent''s configuration does not have';

CREATE FUNCTION pgark.enqueue(action text, components text[], repository text, options jsonb, schedule text,
        due_at timestamptz, attempts_max integer, requested_by name) RETURNS bigint
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        id bigint;
    BEGIN
        INSERT INTO pgark.queue_job (ulid, action, components, repository, options, requested_by, requested_at,
                requested_xid, schedule, due_at, system_identifier, timeline, attempts_max)
            SELECT pgark.new_ulid(), enqueue.action, enqueue.components, enqueue.repository,
                pgark.check_job_options(enqueue.action, enqueue.options::text)::jsonb, enqueue.requested_by, clock_timestamp(),
                pg_current_xact_id(), enqueue.schedule, enqueue.due_at, i.system_identifier, i.timeline,
                coalesce(enqueue.attempts_max, current_setting('pgark.job_attempts_max')::integer)
            FROM pgark.identity() AS i
            RETURNING queue_job.id INTO id;
        PERFORM pg_notify('pgark', 'job');
        RETURN id;
    END
    $$;
COMMENT ON FUNCTION pgark.enqueue(text, text[], text, jsonb, text, timestamptz, integer, name) IS
    'adds a job to the queue and notifies the agent when it commits';

-- What one transaction does to a job whose attempt is over without success.
CREATE FUNCTION pgark.end_attempt(job pgark.queue_job, retry boolean, code text, message text, detail text, hint text)
    RETURNS text
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        next_state text := CASE
            WHEN job.cancel_requested_at IS NOT NULL THEN 'canceled'
            WHEN retry AND job.attempts < job.attempts_max THEN 'queued'
            ELSE 'failed' END;
    BEGIN
        UPDATE pgark.queue_job AS j SET
            state = next_state,
            claim = NULL,
            lease_expires_at = NULL,
            -- 30 s, 1 min, 2 min, ... 16 min
            not_before = CASE next_state WHEN 'queued'
                THEN clock_timestamp() + interval '30 seconds' * (2 ^ least(job.attempts - 1, 5)) END,
            finished_at = CASE WHEN next_state <> 'queued' THEN clock_timestamp() END,
            error_code = code, error_message = message, error_detail = detail, error_hint = hint
            WHERE j.id = job.id;
        PERFORM pgark.set_progress(job.id, NULL, NULL, NULL, NULL, NULL, NULL);
        IF next_state = 'queued' THEN
            PERFORM pg_notify('pgark', 'job');
        END IF;
        RETURN next_state;
    END
    $$;
COMMENT ON FUNCTION pgark.end_attempt(pgark.queue_job, boolean, text, text, text, text) IS
    'ends an attempt without success: the job is queued again, failed, or canceled';

-- The kind of the changes of timeline since the given one, from the history file and from what "pgark restore" has left:
-- the plan that archive-get serves. It stays for good, so the timeline that it ends on counts, and on a standby it says nothing.
-- A promoted standby and a recovery to the end of WAL reached no target.
CREATE FUNCTION pgark.timeline_begin(since integer, timeline integer) RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        -- Escaped, since names of restore points may be of any encoding.
        history text := encode(pg_read_binary_file('pg_wal/' || lpad(upper(to_hex(timeline)), 8, '0') || '.history', 0, 1048576, true), 'escape');
        plan text := encode(pg_read_binary_file('pgark_recovery.json', 0, 1048576, true), 'escape');
        restored bigint;
        begun text;
    BEGIN
        IF plan IS NOT NULL AND plan::jsonb -> 'standby' IS DISTINCT FROM 'true' THEN
            restored := (plan::jsonb -> 'spans' -> -1 ->> 'timeline')::bigint;
        END IF;
        SELECT CASE WHEN min(l.ancestor) = since AND bool_and(l.reason = 'no recovery target specified' AND l.ancestor IS DISTINCT FROM restored)
                THEN 'failover' ELSE 'recovery' END INTO begun
            FROM (SELECT m[1]::bigint AS ancestor, rtrim(m[2]) AS reason
                FROM regexp_split_to_table(history, E'\n') AS line,
                    LATERAL regexp_match(line, '^[[:space:]]*([0-9]{1,10})[[:space:]]+[0-9A-F]+/[0-9A-F]+[[:space:]]*(.*)$') AS m) AS l
            WHERE l.ancestor >= since;
        RETURN begun;
    EXCEPTION WHEN data_exception THEN
        -- A plan that cannot be read was left by somebody.
        RETURN 'recovery';
    END
    $$;
COMMENT ON FUNCTION pgark.timeline_begin(integer, integer) IS
    'failover when every change of timeline since one was a promotion or a recovery to the end of WAL; recovery when one was a restore by pgark or ended in the past, or when that is unknown';

CREATE FUNCTION pgark.settle_jobs() RETURNS integer
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        here record;
        job pgark.queue_job;
        since integer;
        begun text;
        settled integer := 0;
    BEGIN
        SELECT * INTO here FROM pgark.identity();
        FOR job IN SELECT * FROM pgark.queue_job AS j
            WHERE j.state IN ('queued', 'running')
                AND (j.system_identifier, j.timeline) <> (here.system_identifier, here.timeline)
            ORDER BY j.id FOR UPDATE SKIP LOCKED
        LOOP
            IF job.timeline IS DISTINCT FROM since THEN
                since := job.timeline;
                begun := pgark.timeline_begin(since, here.timeline);
            END IF;
            settled := settled + 1;
            IF begun = 'recovery' OR job.system_identifier <> here.system_identifier OR job.timeline > here.timeline THEN
                UPDATE pgark.queue_job AS j SET state = 'orphaned', claim = NULL, lease_expires_at = NULL,
                    finished_at = clock_timestamp(), error_code = 'job_orphaned',
                    error_message = format('the cluster was recovered to the past or copied: timeline %s became %s', job.timeline, here.timeline),
                    error_hint = 'What the job did is in the repository. Request it again if it is still wanted.'
                    WHERE j.id = job.id;
                CONTINUE;
            END IF;
            UPDATE pgark.queue_job AS j SET timeline = here.timeline WHERE j.id = job.id RETURNING * INTO job;
            IF job.state = 'running' THEN
                PERFORM pgark.end_attempt(job, true, 'job_failover',
                    format('the cluster failed over to timeline %s while the job ran', here.timeline), NULL, NULL);
            END IF;
        END LOOP;
        RETURN settled;
    END
    $$;
COMMENT ON FUNCTION pgark.settle_jobs() IS
    'decides on open jobs of another timeline: after a failover queued ones stay and running ones have failed; after a recovery to the past and a restore by pgark all are orphaned; a copy that others recovered to the end of WAL looks like a failover';

CREATE FUNCTION pgark.expire_leases() RETURNS integer
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        job pgark.queue_job;
        expired integer := 0;
    BEGIN
        FOR job IN SELECT * FROM pgark.queue_job AS j
            WHERE j.state = 'running' AND j.lease_expires_at < clock_timestamp()
            ORDER BY j.id FOR UPDATE SKIP LOCKED
        LOOP
            PERFORM pgark.end_attempt(job, true, 'lease_expired',
                format('node %s has not been heard of since %s', job.node, job.heartbeat_at),
                'The agent died, hung, or lost its connection.', 'Look into the agent''s log.');
            expired := expired + 1;
        END LOOP;
        RETURN expired;
    END
    $$;
COMMENT ON FUNCTION pgark.expire_leases() IS 'ends the attempts whose agent is silent';

----------------------------------------------------------------------------------------------------
-- For the agent. docs/decisions/0070-job-states.md tells the whole.
----------------------------------------------------------------------------------------------------

CREATE FUNCTION pgark.register_agent(node text, version text, started_at timestamptz) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        PERFORM pgark.check_database();
        INSERT INTO pgark.queue_agent AS a (node, version, started_at, registered_at)
            VALUES (register_agent.node, register_agent.version, register_agent.started_at, clock_timestamp())
            ON CONFLICT ON CONSTRAINT queue_agent_pkey DO UPDATE
                SET version = EXCLUDED.version, started_at = EXCLUDED.started_at, registered_at = EXCLUDED.registered_at;
    END
    $$;
COMMENT ON FUNCTION pgark.register_agent(text, text, timestamptz) IS 'notes that an agent has connected';

CREATE FUNCTION pgark.claim_job(node text, actions text[] DEFAULT NULL)
    RETURNS TABLE (id bigint, ulid text, claim text, action text, components text[], repository text, options jsonb,
                   schedule text, due_at timestamptz, attempt integer, requested_by name, lease_seconds integer)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        here record;
        lease interval;
    BEGIN
        PERFORM pgark.check_database();
        IF node IS NULL OR node = '' OR length(node) > 255 THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = 'a job is claimed for a node, and none is given',
                DETAIL = 'The name of the node has 1 to 255 characters.', HINT = 'Pass the name of the host.';
        END IF;
        PERFORM pgark.settle_jobs();
        PERFORM pgark.expire_leases();
        SELECT * INTO here FROM pgark.identity();
        lease := pgark.setting_interval('job_lease');
        RETURN QUERY
            WITH next AS (
                SELECT q.id FROM pgark.queue_job AS q
                    WHERE q.state = 'queued'
                        AND q.system_identifier = here.system_identifier AND q.timeline = here.timeline
                        AND (q.not_before IS NULL OR q.not_before <= clock_timestamp())
                        AND (actions IS NULL OR q.action = ANY (actions))
                    ORDER BY q.id LIMIT 1
                    FOR UPDATE SKIP LOCKED)
            UPDATE pgark.queue_job AS j SET
                state = 'running', node = claim_job.node, claim = pgark.new_ulid(), attempts = j.attempts + 1,
                started_at = clock_timestamp(), heartbeat_at = clock_timestamp(),
                lease_expires_at = clock_timestamp() + lease, not_before = NULL,
                error_code = NULL, error_message = NULL, error_detail = NULL, error_hint = NULL
                FROM next WHERE j.id = next.id
                RETURNING j.id, j.ulid, j.claim, j.action, j.components, j.repository, j.options, j.schedule, j.due_at,
                    j.attempts, j.requested_by, extract(epoch FROM lease)::integer;
    END
    $$;
COMMENT ON FUNCTION pgark.claim_job(text, text[]) IS
    'hands the oldest queued job to an agent, or no row; commit at once, then look into the repository for the ulid';

CREATE FUNCTION pgark.heartbeat_job(job_id bigint, claim text) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        canceled boolean;
    BEGIN
        PERFORM pgark.check_database();
        UPDATE pgark.queue_job AS j SET heartbeat_at = clock_timestamp(),
            lease_expires_at = clock_timestamp() + pgark.setting_interval('job_lease')
            WHERE j.id = job_id AND j.claim = heartbeat_job.claim AND j.state = 'running'
            RETURNING j.cancel_requested_at IS NOT NULL INTO canceled;
        RETURN CASE WHEN canceled IS NULL THEN 'lost' WHEN canceled THEN 'cancel' ELSE 'continue' END;
    END
    $$;
COMMENT ON FUNCTION pgark.heartbeat_job(bigint, text) IS
    'prolongs the lease: continue; cancel: somebody asked to; lost: the claim is over, stop and finish nothing';

CREATE FUNCTION pgark.report_progress(job_id bigint, claim text, phase text, backup_total bigint DEFAULT NULL,
        backup_streamed bigint DEFAULT NULL, tablespaces_total bigint DEFAULT NULL,
        tablespaces_streamed bigint DEFAULT NULL, bytes_stored bigint DEFAULT NULL) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        IF phase IS NULL OR NOT EXISTS (SELECT FROM pgark.queue_job AS j
                WHERE j.id = job_id AND j.claim = report_progress.claim AND j.state = 'running') THEN
            RETURN false;
        END IF;
        RETURN pgark.set_progress(job_id, phase, backup_total, backup_streamed, tablespaces_total,
            tablespaces_streamed, bytes_stored);
    END
    $$;
COMMENT ON FUNCTION pgark.report_progress(bigint, text, text, bigint, bigint, bigint, bigint, bigint) IS
    'shows a running job''s progress in stat_progress_backup, without WAL; false when the claim is over or pgark is not in shared_preload_libraries';

CREATE FUNCTION pgark.finish_job(job_id bigint, claim text, outcome text, label text DEFAULT NULL,
        result jsonb DEFAULT NULL, retry boolean DEFAULT false, error_code text DEFAULT NULL,
        error_message text DEFAULT NULL, error_detail text DEFAULT NULL, error_hint text DEFAULT NULL) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        job pgark.queue_job;
    BEGIN
        PERFORM pgark.check_database();
        IF outcome IS NULL OR outcome NOT IN ('succeeded', 'failed', 'canceled') THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = format('a job cannot finish as "%s"', coalesce(left(outcome, 80), 'NULL')),
                DETAIL = 'It finishes as succeeded, failed or canceled.', HINT = 'Pass one of these.';
        END IF;
        SELECT * INTO job FROM pgark.queue_job AS j
            WHERE j.id = job_id AND j.claim = finish_job.claim AND j.state = 'running' FOR UPDATE;
        IF NOT FOUND THEN
            RETURN 'lost';
        END IF;
        IF outcome = 'failed' THEN
            RETURN pgark.end_attempt(job, coalesce(retry, false), error_code, error_message, error_detail, error_hint);
        END IF;
        -- What is done is done, whether somebody asked to cancel it meanwhile or not.
        UPDATE pgark.queue_job AS j SET state = outcome, claim = NULL, lease_expires_at = NULL,
            finished_at = clock_timestamp(), label = finish_job.label, result = finish_job.result,
            error_code = finish_job.error_code, error_message = finish_job.error_message,
            error_detail = finish_job.error_detail, error_hint = finish_job.error_hint
            WHERE j.id = job_id;
        PERFORM pgark.set_progress(job_id, NULL, NULL, NULL, NULL, NULL, NULL);
        RETURN outcome;
    END
    $$;
COMMENT ON FUNCTION pgark.finish_job(bigint, text, text, text, jsonb, boolean, text, text, text, text) IS
    'ends a claimed job, after the repository has what it made; returns its state: queued when a failed one is tried again, lost when the claim is over';

-- Policy: the desired schedules and retention policies, to be put into the repository.

CREATE FUNCTION pgark.policy_to_store(OUT version bigint, OUT document jsonb, OUT reference jsonb) RETURNS SETOF record
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        PERFORM pgark.check_database();
        -- One statement, so that version and document belong together.
        RETURN QUERY
            SELECT greatest(p.version, (SELECT max(s.version) FROM pgark.config_schedule AS s),
                            (SELECT max(r.version) FROM pgark.config_retention AS r)),
                jsonb_build_object('format', 1,
                    'schedules', (SELECT coalesce(jsonb_agg(s.definition ORDER BY s.name), '[]')
                        FROM pgark.config_schedule AS s WHERE NOT s.dropped),
                    'retention', (SELECT coalesce(jsonb_agg(jsonb_build_object('component', r.component,
                            'repository', r.repository, 'policy', r.policy) ORDER BY r.component, r.repository), '[]')
                        FROM pgark.config_retention AS r)),
                p.reference
            FROM pgark.queue_policy AS p
            WHERE p.version > p.stored_version
                OR EXISTS (SELECT FROM pgark.config_schedule AS s WHERE s.version > p.stored_version)
                OR EXISTS (SELECT FROM pgark.config_retention AS r WHERE r.version > p.stored_version);
    END
    $$;
COMMENT ON FUNCTION pgark.policy_to_store() IS
    'the policy as it is to be, while a change of it is not in the repository; else no row';

CREATE FUNCTION pgark.forget_elsewhere() RETURNS void
    LANGUAGE sql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
        UPDATE pgark.config_schedule AS s SET effective = NULL, effective_at = NULL
            WHERE s.effective IS NOT NULL AND EXISTS (SELECT FROM pgark.queue_policy AS p WHERE p.stored_version = 0);
        UPDATE pgark.config_retention AS r SET effective = NULL, effective_at = NULL
            WHERE r.effective IS NOT NULL AND EXISTS (SELECT FROM pgark.queue_policy AS p WHERE p.stored_version = 0);
    $$;
COMMENT ON FUNCTION pgark.forget_elsewhere() IS
    'before anything was stored from here, what a dump says to be in effect was so where it was taken: it takes effect here when it is stored, from then on';

CREATE FUNCTION pgark.policy_stored(version bigint, reference jsonb) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        changed integer;
        n integer;
    BEGIN
        PERFORM pgark.check_database();
        -- First, as everybody who changes both.
        PERFORM FROM pgark.queue_policy FOR UPDATE;
        PERFORM pgark.forget_elsewhere();
        UPDATE pgark.queue_policy AS p SET version = greatest(p.version, policy_stored.version),
            stored_version = greatest(p.stored_version, policy_stored.version),
            stored_at = clock_timestamp(), reference = policy_stored.reference;
        DELETE FROM pgark.config_schedule AS s WHERE s.dropped AND s.version <= policy_stored.version;
        GET DIAGNOSTICS changed = ROW_COUNT;
        UPDATE pgark.config_schedule AS s SET effective = s.definition, effective_at = clock_timestamp()
            WHERE s.version <= policy_stored.version AND s.effective IS DISTINCT FROM s.definition;
        GET DIAGNOSTICS n = ROW_COUNT;
        changed := changed + n;
        UPDATE pgark.config_retention AS r SET effective = r.policy, effective_at = clock_timestamp()
            WHERE r.version <= policy_stored.version AND r.effective IS DISTINCT FROM r.policy;
        GET DIAGNOSTICS n = ROW_COUNT;
        RETURN changed + n;
    END
    $$;
COMMENT ON FUNCTION pgark.policy_stored(bigint, jsonb) IS
    'the repository has the policy of this version: it takes effect; returns how many rows changed';

CREATE FUNCTION pgark.policy_import(document jsonb, reference jsonb, discard_pending boolean) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        was pgark.queue_policy;
        stored bigint;
        -- Changes up to this one give way to what the repository has: all of them, or those of which it has a record.
        overtaken bigint;
        all_of_them boolean;
        item jsonb;
        changed integer := 0;
        n integer;
    BEGIN
        PERFORM pgark.check_database();
        IF document IS NULL OR document ->> 'format' IS DISTINCT FROM '1'
            OR jsonb_typeof(document -> 'schedules') IS DISTINCT FROM 'array'
            OR jsonb_typeof(document -> 'retention') IS DISTINCT FROM 'array' THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = 'this is no policy document of format 1',
                DETAIL = 'It has "format": 1 and the arrays "schedules" and "retention".',
                HINT = 'Pass what the repository has.';
        END IF;
        SELECT * INTO was FROM pgark.queue_policy FOR UPDATE;
        IF was.stored_version = 0 THEN
            PERFORM pgark.forget_elsewhere();
            -- What comes from the repository gets 1: a dump of it is pending where nothing is stored. The rest stays pending.
            UPDATE pgark.config_schedule AS s SET version = s.version + 1;
            UPDATE pgark.config_retention AS r SET version = r.version + 1;
            UPDATE pgark.queue_policy AS p SET version = p.version + 1, stored_version = 1, dumped_version = p.dumped_version + 1;
        END IF;
        -- What was asked for here and is not in the repository yet stays, unless the tables were rewound. What a dump brought
        -- was asked for elsewhere, before: the repository may have newer.
        all_of_them := coalesce(discard_pending, false) OR was.reference IS NOT NULL;
        SELECT p.stored_version, CASE
                WHEN coalesce(discard_pending, false) OR was.reference IS NULL AND was.version = 0 THEN 9223372036854775807
                WHEN was.reference IS NULL THEN greatest(p.stored_version, p.dumped_version)
                ELSE p.stored_version END
            INTO stored, overtaken FROM pgark.queue_policy AS p;
        DELETE FROM pgark.config_schedule AS s
            WHERE s.version <= overtaken AND (all_of_them OR document -> 'schedules_recorded' = 'true')
                AND NOT EXISTS (SELECT FROM jsonb_array_elements(document -> 'schedules') AS d WHERE d ->> 'name' = s.name);
        GET DIAGNOSTICS changed = ROW_COUNT;
        DELETE FROM pgark.config_retention AS r
            WHERE r.version <= overtaken AND (all_of_them OR document -> 'recorded' ? r.component)
                -- Of a repository that could not be asked, and of all in general, nothing was told then.
                AND (NOT document ? 'covered' OR coalesce(document -> 'covered' ? r.repository, false))
                AND NOT EXISTS (SELECT FROM jsonb_array_elements(document -> 'retention') AS d
                    WHERE d ->> 'component' = r.component AND d ->> 'repository' IS NOT DISTINCT FROM r.repository);
        GET DIAGNOSTICS n = ROW_COUNT;
        changed := changed + n;
        FOR item IN SELECT pgark.check_schedule(d::text)::jsonb FROM jsonb_array_elements(document -> 'schedules') AS d LOOP
            INSERT INTO pgark.config_schedule AS s (name, definition, version, changed_by, changed_at, effective, effective_at)
                VALUES (item ->> 'name', item, stored, pgark.requester(), clock_timestamp(), item, clock_timestamp())
                ON CONFLICT (name) DO UPDATE SET effective = EXCLUDED.effective, effective_at = EXCLUDED.effective_at,
                    definition = CASE WHEN s.version <= overtaken THEN EXCLUDED.definition ELSE s.definition END,
                    version = CASE WHEN s.version <= overtaken THEN least(s.version, stored) ELSE s.version END,
                    dropped = s.dropped AND s.version > overtaken
                WHERE s.effective IS DISTINCT FROM EXCLUDED.effective
                    OR s.version <= overtaken AND (s.dropped OR s.definition <> EXCLUDED.definition OR s.version > stored);
            GET DIAGNOSTICS n = ROW_COUNT;
            changed := changed + n;
        END LOOP;
        FOR item IN SELECT jsonb_build_object('component', d -> 'component', 'repository', d -> 'repository',
                'policy', pgark.check_retention((d -> 'policy')::text)::jsonb) FROM jsonb_array_elements(document -> 'retention') AS d LOOP
            INSERT INTO pgark.config_retention AS r (component, repository, policy, version, changed_by, changed_at, effective, effective_at)
                VALUES (item ->> 'component', item ->> 'repository', item -> 'policy', stored, pgark.requester(),
                    clock_timestamp(), item -> 'policy', clock_timestamp())
                ON CONFLICT (component, repository) DO UPDATE SET effective = EXCLUDED.effective, effective_at = EXCLUDED.effective_at,
                    policy = CASE WHEN r.version <= overtaken THEN EXCLUDED.policy ELSE r.policy END,
                    version = CASE WHEN r.version <= overtaken THEN least(r.version, stored) ELSE r.version END
                WHERE r.effective IS DISTINCT FROM EXCLUDED.effective
                    OR r.version <= overtaken AND (r.policy <> EXCLUDED.policy OR r.version > stored);
            GET DIAGNOSTICS n = ROW_COUNT;
            changed := changed + n;
        END LOOP;
        UPDATE pgark.queue_policy AS p SET reference = policy_import.reference, stored_at = clock_timestamp(),
            version = CASE WHEN coalesce(discard_pending, false) THEN p.stored_version ELSE p.version END;
        RETURN changed;
    END
    $$;
COMMENT ON FUNCTION pgark.policy_import(jsonb, jsonb, boolean) IS
    'takes the repository''s policy over: another one wrote it, a dump brought an older one, or the tables were rewound (discard_pending); returns how many rows changed';

CREATE FUNCTION pgark.record_occurrence(schedule text, due_at timestamptz) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        PERFORM pgark.check_database();
        INSERT INTO pgark.queue_occurrence AS o (schedule, due_at, outcome, source, decided_at)
            VALUES (record_occurrence.schedule, record_occurrence.due_at, 'elsewhere', 'agent', clock_timestamp())
            ON CONFLICT ON CONSTRAINT queue_occurrence_pkey DO NOTHING;
        RETURN FOUND;
    END
    $$;
COMMENT ON FUNCTION pgark.record_occurrence(text, timestamptz) IS
    'an occurrence of a schedule that the repository knows of: it is not run again; false when it was known here';

----------------------------------------------------------------------------------------------------
-- Schedules
----------------------------------------------------------------------------------------------------

CREATE FUNCTION pgark.next_policy_version() RETURNS bigint
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        changed bigint;
    BEGIN
        -- After a restore by pg_dump the rows are ahead of this one.
        UPDATE pgark.queue_policy AS p SET version = 1 + greatest(p.version, x.newest),
            dumped_version = CASE WHEN p.version = 0 THEN coalesce(x.newest, 0) ELSE p.dumped_version END
            FROM (SELECT greatest((SELECT max(s.version) FROM pgark.config_schedule AS s),
                (SELECT max(r.version) FROM pgark.config_retention AS r)) AS newest) AS x
            RETURNING p.version INTO changed;
        PERFORM pg_notify('pgark', 'policy');
        RETURN changed;
    END
    $$;
COMMENT ON FUNCTION pgark.next_policy_version() IS
    'numbers a change of policy and notifies the agent; changes wait for one another until they commit';

CREATE FUNCTION pgark.use_pg_cron() RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        job record;
    BEGIN
        IF NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_cron') THEN
            RETURN false;
        END IF;
        -- Anybody may have a job of this name: that of the extension's owner counts. What a dump brought may point at the
        -- server that it was taken from.
        EXECUTE $q$ SELECT jobid, active, database = current_database() AND command = 'SELECT pgark.tick(''pg_cron'')'
                AND (coalesce(current_setting('cron.use_background_workers', true), 'off') = 'on'
                    OR nodeport = current_setting('port')::integer) AS in_order
            FROM cron.job WHERE jobname = 'pgark' AND username = current_user $q$ INTO job;
        IF job.in_order AND job.active THEN
            RETURN true;
        ELSIF job.in_order THEN
            EXECUTE $q$ SELECT cron.alter_job($1, active => true) $q$ USING job.jobid;
            RETURN true;
        ELSIF job.jobid IS NOT NULL THEN
            -- cron.schedule() would keep its database and its port.
            EXECUTE $q$ SELECT cron.unschedule($1) $q$ USING job.jobid;
        END IF;
        EXECUTE $q$ SELECT cron.schedule('pgark', '* * * * *', 'SELECT pgark.tick(''pg_cron'')') $q$;
        RETURN true;
    END
    $$;
COMMENT ON FUNCTION pgark.use_pg_cron() IS
    'makes pg_cron evaluate the schedules every minute; schedule() calls it; false when pg_cron is not installed in this database';

CREATE FUNCTION pgark.put_schedule(name text, definition jsonb) RETURNS bigint
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        checked jsonb;
        id bigint;
    BEGIN
        PERFORM pgark.check_database();
        PERFORM pgark.identity();
        PERFORM pgark.check_name('schedule', name);
        IF length(definition::text) > 65536 THEN
            RAISE EXCEPTION USING ERRCODE = 'program_limit_exceeded',
                MESSAGE = 'the definition of the schedule is too long',
                DETAIL = format('It has %s characters; at most 65536 are allowed.', length(definition::text)),
                HINT = 'Leave some of its options out.';
        END IF;
        checked := pgark.check_schedule(definition::text)::jsonb;
        PERFORM pgark.check_repository(checked ->> 'repository');
        IF (SELECT count(*) FROM pgark.config_schedule AS s WHERE NOT s.dropped AND s.name <> put_schedule.name) >= 1000 THEN
            RAISE EXCEPTION USING ERRCODE = 'program_limit_exceeded',
                MESSAGE = 'there are too many schedules', DETAIL = 'At most 1000 are allowed.',
                HINT = 'Remove some: SELECT pgark.unschedule(name).';
        END IF;
        INSERT INTO pgark.config_schedule AS s (name, definition, version, changed_by, changed_at)
            VALUES (put_schedule.name, checked, pgark.next_policy_version(), pgark.requester(), clock_timestamp())
            ON CONFLICT ON CONSTRAINT config_schedule_name_key DO UPDATE SET definition = EXCLUDED.definition,
                dropped = false, version = EXCLUDED.version, changed_by = EXCLUDED.changed_by, changed_at = EXCLUDED.changed_at
            RETURNING s.id INTO id;
        PERFORM pgark.audit('schedule', put_schedule.name, checked);
        PERFORM pgark.use_pg_cron();
        RETURN id;
    END
    $$;
COMMENT ON FUNCTION pgark.put_schedule(text, jsonb) IS 'what both forms of schedule() share';

CREATE FUNCTION pgark.schedule(name text, cron text, action text, components text[] DEFAULT NULL,
        options jsonb DEFAULT '{}') RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        IF cron IS NULL OR action IS NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed',
                MESSAGE = 'a schedule needs a cron expression and an action', DETAIL = 'One of them is NULL.',
                HINT = 'For example: SELECT pgark.schedule(''nightly'', ''0 2 * * *'', ''backup'');';
        END IF;
        RETURN pgark.put_schedule(name, jsonb_strip_nulls(jsonb_build_object('name', name, 'cron', cron,
            'action', action, 'components', pgark.check_components(components)))
            || jsonb_build_object('options', coalesce(options, '{}')));
    END
    $$;
COMMENT ON FUNCTION pgark.schedule(text, text, text, text[], jsonb) IS
    'makes or changes a schedule: a cron expression of five fields; options: time_zone, missed (run, skip), attempts_max, repository, and those of the action';

CREATE FUNCTION pgark.schedule(name text, every interval, action text, components text[] DEFAULT NULL,
        options jsonb DEFAULT '{}') RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        seconds numeric;
        anchor timestamptz;
    BEGIN
        IF every IS NULL OR action IS NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed',
                MESSAGE = 'a schedule needs an interval and an action', DETAIL = 'One of them is NULL.',
                HINT = 'For example: SELECT pgark.schedule(''often'', interval ''6 hours'', ''backup'');';
        END IF;
        IF extract(year FROM every) <> 0 OR extract(month FROM every) <> 0 THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = 'the interval of a schedule cannot have months or years',
                DETAIL = 'They differ in length.', HINT = 'Use a cron expression: ''0 2 1 * *'' is the first of every month at 02:00.';
        END IF;
        seconds := trunc(extract(epoch FROM every));
        IF seconds NOT BETWEEN 60 AND 34560000 THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = 'the interval of a schedule is outside the valid range',
                DETAIL = format('It is %s; 1 minute to 400 days are allowed.', every),
                HINT = 'Choose another interval, or a cron expression.';
        END IF;
        -- The same interval again keeps its instants.
        SELECT (s.definition ->> 'anchor')::timestamptz INTO anchor FROM pgark.config_schedule AS s
            WHERE s.name = schedule.name AND (s.definition ->> 'every_seconds')::numeric = seconds AND NOT s.dropped;
        RETURN pgark.put_schedule(name, jsonb_strip_nulls(jsonb_build_object('name', name, 'every_seconds', seconds,
            'anchor', to_char(coalesce(anchor, clock_timestamp()) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
            'action', action, 'components', pgark.check_components(components)))
            || jsonb_build_object('options', coalesce(options, '{}')));
    END
    $$;
COMMENT ON FUNCTION pgark.schedule(text, interval, text, text[], jsonb) IS
    'makes or changes a schedule: an interval counted from now on; options as with a cron expression';

CREATE FUNCTION pgark.unschedule(name text) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        PERFORM pgark.check_database();
        PERFORM pgark.identity();
        UPDATE pgark.config_schedule AS s SET dropped = true, version = pgark.next_policy_version(),
            changed_by = pgark.requester(), changed_at = clock_timestamp()
            WHERE s.name = unschedule.name AND NOT s.dropped;
        IF NOT FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'undefined_object',
                MESSAGE = format('schedule "%s" does not exist', coalesce(left(name, 80), 'NULL')),
                DETAIL = 'No schedule has this name.', HINT = 'SELECT name FROM pgark.schedule;';
        END IF;
        PERFORM pgark.audit('unschedule', name, NULL);
        RETURN true;
    END
    $$;
COMMENT ON FUNCTION pgark.unschedule(text) IS 'removes a schedule; its jobs stay';

CREATE FUNCTION pgark.tick_at(now timestamptz, source text) RETURNS integer
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        s pgark.config_schedule;
        due timestamptz;
        outcome text;
        job bigint;
        queued integer := 0;
    BEGIN
        -- Before anything was stored from here, what is in effect came with a dump: see forget_elsewhere().
        FOR s IN SELECT * FROM pgark.config_schedule AS c WHERE c.effective IS NOT NULL
            AND EXISTS (SELECT FROM pgark.queue_policy AS p WHERE p.stored_version > 0) ORDER BY c.name
        LOOP
            BEGIN
                -- Looks first and locks after: a minute without anything due writes nothing.
                due := pgark.schedule_due(s.effective::text, greatest(s.effective_at, (SELECT max(o.due_at)
                    FROM pgark.queue_occurrence AS o WHERE o.schedule = s.name)), tick_at.now);
                CONTINUE WHEN due IS NULL;
                -- Two that evaluate at the same time must not both find no job running.
                PERFORM FROM pgark.config_schedule AS c
                    WHERE c.id = s.id AND c.effective = s.effective FOR UPDATE SKIP LOCKED;
                CONTINUE WHEN NOT FOUND;
                outcome := CASE
                    WHEN tick_at.now - due > pgark.setting_interval('missed_after') AND s.effective ->> 'missed' = 'skip' THEN 'skipped'
                    WHEN EXISTS (SELECT FROM pgark.queue_job AS j
                        WHERE j.state IN ('queued', 'running') AND j.schedule = s.name) THEN 'overlapped'
                    ELSE 'queued' END;
                INSERT INTO pgark.queue_occurrence AS o (schedule, due_at, outcome, source, decided_at)
                    VALUES (s.name, due, outcome, tick_at.source, clock_timestamp())
                    ON CONFLICT ON CONSTRAINT queue_occurrence_pkey DO NOTHING;
                CONTINUE WHEN NOT FOUND OR outcome <> 'queued';
                job := pgark.enqueue(s.effective ->> 'action',
                    (SELECT array_agg(c) FROM jsonb_array_elements_text(s.effective -> 'components') AS c),
                    s.effective ->> 'repository', s.effective -> 'options', s.name, due,
                    (s.effective ->> 'attempts_max')::integer, s.changed_by);
                UPDATE pgark.queue_occurrence AS o SET job_id = job WHERE o.schedule = s.name AND o.due_at = due;
                queued := queued + 1;
            EXCEPTION WHEN OTHERS THEN
                -- One that this library does not understand must not stop the others.
                RAISE WARNING USING MESSAGE = format('schedule "%s" could not be evaluated: %s', s.name, SQLERRM),
                    HINT = 'Set it again: SELECT pgark.schedule(...);';
            END;
        END LOOP;
        RETURN queued;
    END
    $$;
COMMENT ON FUNCTION pgark.tick_at(timestamptz, text) IS 'what tick() does, at a given instant';

CREATE FUNCTION pgark.tick(source text DEFAULT 'tick') RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        old timestamptz;
    BEGIN
        PERFORM pgark.check_database();
        IF source IS NULL OR source NOT IN ('pg_cron', 'worker', 'agent', 'tick') THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = 'schedules are evaluated by pg_cron, worker, agent or tick',
                DETAIL = format('This was "%s".', coalesce(left(source, 80), 'NULL')),
                HINT = 'SELECT pgark.tick();';
        END IF;
        PERFORM pgark.settle_jobs();
        PERFORM pgark.expire_leases();
        old := clock_timestamp() - pgark.setting_interval('job_keep');
        DELETE FROM pgark.queue_job AS j WHERE j.finished_at < old;
        -- The newest occurrence of a schedule tells where to go on.
        DELETE FROM pgark.queue_occurrence AS o WHERE o.decided_at < old
            AND o.due_at < (SELECT max(n.due_at) FROM pgark.queue_occurrence AS n WHERE n.schedule = o.schedule);
        -- Who is next in line waits while the one before is at work.
        IF pgark.note_tick(source) IS NOT NULL AND source <> 'tick' THEN
            RETURN 0;
        END IF;
        RETURN pgark.tick_at(clock_timestamp(), source);
    END
    $$;
COMMENT ON FUNCTION pgark.tick(text) IS
    'evaluates the schedules and tidies the queue: pg_cron calls it every minute, else the background worker, else the agent; returns how many jobs it queued';

----------------------------------------------------------------------------------------------------
-- Requests
----------------------------------------------------------------------------------------------------

CREATE FUNCTION pgark.request(action text, components text[], repository text, options jsonb) RETURNS bigint
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        id bigint;
    BEGIN
        PERFORM pgark.check_database();
        PERFORM pgark.identity();
        PERFORM pgark.check_repository(repository);
        IF (SELECT count(*) FROM pgark.queue_job AS j WHERE j.state IN ('queued', 'running')) >= 10000 THEN
            RAISE EXCEPTION USING ERRCODE = 'program_limit_exceeded',
                MESSAGE = 'there are too many open jobs', DETAIL = 'At most 10000 are allowed.',
                HINT = 'Look whether the agent works: SELECT * FROM pgark.health();';
        END IF;
        id := pgark.enqueue(action, pgark.check_components(components), repository, options, NULL, NULL, NULL, pgark.requester());
        PERFORM pgark.audit('request_' || action, id::text, jsonb_build_object('components', components,
            'repository', repository, 'options', options));
        RETURN id;
    END
    $$;
COMMENT ON FUNCTION pgark.request(text, text[], text, jsonb) IS 'what the functions request_* share';

CREATE FUNCTION pgark.request_backup(components text[] DEFAULT NULL, repository text DEFAULT NULL) RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$ SELECT pgark.request('backup', components, repository, '{}') $$;
COMMENT ON FUNCTION pgark.request_backup(text[], text) IS
    'asks for a backup of components or groups, or of everything, and returns the job';

CREATE FUNCTION pgark.request_verify(backup text DEFAULT NULL, level text DEFAULT NULL, component text DEFAULT NULL,
        repository text DEFAULT NULL) RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
        -- A label tells whose backup it is, as far as the catalog knows; else the agent takes it for the cluster's.
        SELECT pgark.request('verify', CASE WHEN component IS NOT NULL THEN ARRAY[component] ELSE (
                SELECT ARRAY[min(b.component)] FROM pgark.catalog_backup AS b
                    JOIN pgark.catalog_component AS c ON c.name = b.component
                    WHERE b.label = request_verify.backup
                        AND (request_verify.repository IS NULL OR b.repository = request_verify.repository)
                    HAVING count(DISTINCT b.component) = 1) END, repository,
            jsonb_strip_nulls(jsonb_build_object('backup', backup, 'level', level)))
    $$;
COMMENT ON FUNCTION pgark.request_verify(text, text, text, text) IS
    'asks to verify a backup, or everything stored, and returns the job; level: existence, bytes, pages';

CREATE FUNCTION pgark.dry_run_option(dry_run boolean) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        IF dry_run IS NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed',
                MESSAGE = 'dry_run must not be NULL', DETAIL = 'It decides whether something is removed.',
                HINT = 'Pass true or false, or leave it out for false.';
        END IF;
        RETURN CASE WHEN dry_run THEN '{"dry_run": true}' ELSE '{}' END::jsonb;
    END
    $$;
COMMENT ON FUNCTION pgark.dry_run_option(boolean) IS 'options of a job that removes something; refuses NULL';

CREATE FUNCTION pgark.request_expire(component text DEFAULT NULL, repository text DEFAULT NULL, dry_run boolean DEFAULT false)
    RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT pgark.request('expire', CASE WHEN component IS NOT NULL THEN ARRAY[component] END, repository,
            pgark.dry_run_option(dry_run))
    $$;
COMMENT ON FUNCTION pgark.request_expire(text, text, boolean) IS
    'asks to expire the backups that the retention policy does not keep, and returns the job; see preview_expire()';

CREATE FUNCTION pgark.request_gc(repository text DEFAULT NULL, dry_run boolean DEFAULT false) RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT pgark.request('gc', NULL, repository, pgark.dry_run_option(dry_run))
    $$;
COMMENT ON FUNCTION pgark.request_gc(text, boolean) IS
    'asks to remove what nothing in a repository refers to, and returns the job';

CREATE FUNCTION pgark.request_restore(component text, backup text DEFAULT NULL, selection text[] DEFAULT NULL,
        repository text DEFAULT NULL) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        PERFORM pgark.check_database();
        PERFORM pgark.check_component(component);
        IF EXISTS (SELECT FROM pgark.catalog_component AS c WHERE c.name = component AND c.stage = 'cluster') THEN
            RAISE EXCEPTION USING ERRCODE = 'wrong_object_type',
                MESSAGE = format('component "%s" is the Postgres cluster', component),
                DETAIL = 'A server cannot restore itself while it runs.',
                HINT = 'SELECT pgark.restore_command(...); gives the line for a shell.';
        END IF;
        IF cardinality(selection) = 0 THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = 'nothing is selected', DETAIL = 'The list of parts to restore is empty.',
                HINT = 'Leave it out, or pass NULL, to restore everything.';
        END IF;
        RETURN pgark.request('restore', ARRAY[component], repository,
            jsonb_strip_nulls(jsonb_build_object('backup', backup, 'select', selection)));
    END
    $$;
COMMENT ON FUNCTION pgark.request_restore(text, text, text[], text) IS
    'asks to restore a component, or parts of it, to the place that the agent''s configuration names for that (restore_requests_to), and returns the job; nothing is replaced';

CREATE FUNCTION pgark.no_job(job_id bigint) RETURNS void
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object',
            MESSAGE = format('job %s does not exist', coalesce(job_id::text, 'NULL')),
            DETAIL = 'It never did, was rolled back, or finished longer ago than pgark.job_keep.',
            HINT = 'SELECT id, action, state FROM pgark.job;';
    END
    $$;
COMMENT ON FUNCTION pgark.no_job(bigint) IS 'raises the error about a job that does not exist';

CREATE FUNCTION pgark.cancel(job_id bigint) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        job pgark.queue_job;
    BEGIN
        PERFORM pgark.check_database();
        PERFORM pgark.identity();
        SELECT * INTO job FROM pgark.queue_job AS j WHERE j.id = job_id FOR UPDATE;
        IF NOT FOUND THEN
            PERFORM pgark.no_job(job_id);
        END IF;
        IF job.finished_at IS NOT NULL THEN
            RETURN false;
        END IF;
        UPDATE pgark.queue_job AS j SET cancel_requested_at = clock_timestamp(), cancel_requested_by = pgark.requester(),
            cancel_requested_xid = pg_current_xact_id(), state = CASE j.state WHEN 'queued' THEN 'canceled' ELSE j.state END,
            finished_at = CASE j.state WHEN 'queued' THEN clock_timestamp() END
            WHERE j.id = job_id;
        PERFORM pgark.audit('cancel', job_id::text, NULL);
        PERFORM pg_notify('pgark', 'cancel ' || job_id);
        RETURN true;
    END
    $$;
COMMENT ON FUNCTION pgark.cancel(bigint) IS
    'cancels a queued job, or asks the agent to stop a running one; false when it is over already';

-- One look at a job that somebody waits for: its state when it is over, else NULL.
CREATE FUNCTION pgark.look_at_job(job_id bigint) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        job pgark.queue_job;
    BEGIN
        SELECT * INTO job FROM pgark.queue_job AS j WHERE j.id = job_id;
        IF NOT FOUND THEN
            PERFORM pgark.no_job(job_id);
        END IF;
        IF job.requested_xid = pg_current_xact_id_if_assigned() THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = format('cannot wait for job %s in the transaction that requested it', job_id),
                DETAIL = 'The agent sees the job when the transaction has committed.',
                HINT = 'COMMIT first, and wait in a statement of its own; or: CALL pgark.wait_for(pgark.request_backup());';
        END IF;
        IF job.finished_at IS NULL AND job.cancel_requested_xid = pg_current_xact_id_if_assigned() THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = format('cannot wait for job %s in the transaction that cancels it', job_id),
                DETAIL = 'The agent hears of it when the transaction has committed.',
                HINT = 'COMMIT first, and wait in a statement of its own.';
        END IF;
        RETURN CASE WHEN job.finished_at IS NOT NULL THEN job.state END;
    END
    $$;
COMMENT ON FUNCTION pgark.look_at_job(bigint) IS
    'the state of a job that is over, else NULL; an error in the transaction that requested it or cancels it';

CREATE FUNCTION pgark.check_timeout(timeout interval) RETURNS timestamptz
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        IF timeout IS NULL OR timeout < interval '0' OR timeout > interval '30 days' THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = 'invalid timeout', DETAIL = format('It is %s; 0 to 30 days are allowed.', coalesce(timeout::text, 'NULL')),
                HINT = 'Leave it out for one hour.';
        END IF;
        RETURN clock_timestamp() + timeout;
    END
    $$;
COMMENT ON FUNCTION pgark.check_timeout(interval) IS 'when a wait that begins now is over';

CREATE FUNCTION pgark.wait_is_over(job_id bigint, timeout interval) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        job pgark.queue_job;
    BEGIN
        SELECT * INTO job FROM pgark.queue_job AS j WHERE j.id = job_id;
        IF NOT FOUND THEN
            PERFORM pgark.no_job(job_id);
        END IF;
        RAISE EXCEPTION USING ERRCODE = 'lock_not_available',
            MESSAGE = format('job %s is not done after %s', job_id, timeout),
            DETAIL = format('It is %s, in attempt %s of %s%s.', job.state, job.attempts, job.attempts_max,
                coalesce('; the last error: ' || job.error_message, '')),
            HINT = CASE job.state WHEN 'queued' THEN 'Look whether an agent works: SELECT * FROM pgark.health();'
                ELSE 'It goes on. Look at it: SELECT * FROM pgark.stat_progress_backup; or wait longer.' END;
    END
    $$;
COMMENT ON FUNCTION pgark.wait_is_over(bigint, interval) IS 'raises the error about a wait that was too short';

CREATE FUNCTION pgark.wait(job_id bigint, timeout interval DEFAULT '1 hour') RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        deadline timestamptz := pgark.check_timeout(timeout);
        state text;
    BEGIN
        IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = format('cannot wait for a job at isolation level %s', current_setting('transaction_isolation')),
                DETAIL = 'Its snapshot would never show the job''s end.',
                HINT = 'Wait at READ COMMITTED.';
        END IF;
        LOOP
            state := pgark.look_at_job(job_id);
            EXIT WHEN state IS NOT NULL;
            IF clock_timestamp() >= deadline THEN
                PERFORM pgark.wait_is_over(job_id, timeout);
            END IF;
            PERFORM pg_sleep(least(0.2, greatest(0.01, extract(epoch FROM deadline - clock_timestamp()))));
        END LOOP;
        RETURN state;
    END
    $$;
COMMENT ON FUNCTION pgark.wait(bigint, interval) IS
    'waits until a job is over and returns its state; holds a snapshot meanwhile, which wait_for() does not';

-- No SECURITY DEFINER and no SET here: a procedure with either cannot commit. Hence every name qualified.
CREATE PROCEDURE pgark.wait_for(job_id bigint, timeout interval DEFAULT '1 hour')
    LANGUAGE plpgsql
    AS $$
    DECLARE
        deadline pg_catalog.timestamptz := pgark.check_timeout(timeout);
        state pg_catalog.text;
    BEGIN
        IF pgark.in_transaction_block() THEN
            RAISE EXCEPTION USING ERRCODE = 'active_sql_transaction',
                MESSAGE = 'pgark.wait_for cannot run inside a transaction block or a function',
                DETAIL = 'It commits, so that the agent sees the job.',
                HINT = 'COMMIT first; in a function there is SELECT pgark.wait(job_id), for a job of an earlier transaction.';
        END IF;
        LOOP
            COMMIT;
            state := pgark.look_at_job(job_id);
            EXIT WHEN state IS NOT NULL;
            IF pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>=) deadline THEN
                PERFORM pgark.wait_is_over(job_id, timeout);
            END IF;
            -- A new transaction for every look: vacuum goes on meanwhile.
            COMMIT;
            PERFORM pg_catalog.pg_sleep(0.2);
        END LOOP;
        IF state OPERATOR(pg_catalog.<>) 'succeeded' THEN
            PERFORM pgark.raise_outcome(job_id);
        END IF;
    END
    $$;
COMMENT ON PROCEDURE pgark.wait_for(bigint, interval) IS
    'commits, waits until a job is over, and raises an error unless it succeeded: CALL pgark.wait_for(pgark.request_backup())';

CREATE FUNCTION pgark.raise_outcome(job_id bigint) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        job pgark.queue_job;
    BEGIN
        SELECT * INTO job FROM pgark.queue_job AS j WHERE j.id = job_id;
        IF NOT FOUND THEN
            PERFORM pgark.no_job(job_id);
        END IF;
        RAISE EXCEPTION USING ERRCODE = CASE job.state WHEN 'canceled' THEN 'query_canceled' ELSE 'external_routine_exception' END,
            MESSAGE = format('job %s is %s%s', job_id, job.state, coalesce(': ' || job.error_message, '')),
            DETAIL = coalesce(job.error_detail, format('It had %s of %s attempts.', job.attempts, job.attempts_max)),
            HINT = coalesce(job.error_hint, 'Look at it: SELECT * FROM pgark.job WHERE id = ' || job_id || ';');
    END
    $$;
COMMENT ON FUNCTION pgark.raise_outcome(bigint) IS 'raises the error about a job that did not succeed';

----------------------------------------------------------------------------------------------------
-- Retention and recovery
----------------------------------------------------------------------------------------------------

CREATE FUNCTION pgark.check_component(component text) RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        PERFORM pgark.check_components(ARRAY[component]);
        IF NOT EXISTS (SELECT FROM pgark.catalog_component AS c WHERE c.name = component) THEN
            RAISE EXCEPTION USING ERRCODE = 'wrong_object_type',
                MESSAGE = format('"%s" is a group, not a component', component),
                DETAIL = 'Components have policies and settings of their own.',
                HINT = 'SELECT name FROM pgark.component WHERE ' || quote_literal(component) || ' = ANY (groups);';
        END IF;
        RETURN component;
    END
    $$;
COMMENT ON FUNCTION pgark.check_component(text) IS 'refuses what is no component of the agent''s configuration';

CREATE FUNCTION pgark.set_retention(component text, policy jsonb, repository text DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        checked jsonb;
    BEGIN
        PERFORM pgark.check_database();
        PERFORM pgark.identity();
        PERFORM pgark.check_component(component);
        PERFORM pgark.check_repository(repository);
        checked := pgark.check_retention(coalesce(policy, 'null')::text)::jsonb;
        INSERT INTO pgark.config_retention AS r (component, repository, policy, version, changed_by, changed_at)
            VALUES (set_retention.component, set_retention.repository, checked, pgark.next_policy_version(), pgark.requester(),
                clock_timestamp())
            ON CONFLICT ON CONSTRAINT config_retention_component_repository_key DO UPDATE SET policy = EXCLUDED.policy,
                version = EXCLUDED.version, changed_by = EXCLUDED.changed_by, changed_at = EXCLUDED.changed_at;
        PERFORM pgark.audit('set_retention', component, jsonb_build_object('policy', checked, 'repository', repository));
    END
    $$;
COMMENT ON FUNCTION pgark.set_retention(text, jsonb, text) IS
    'says what to keep of a component, in one repository or in every one; pending until the agent has put it into the repository';

CREATE FUNCTION pgark.set_component(component text, backup_age_max interval) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        PERFORM pgark.check_database();
        PERFORM pgark.identity();
        PERFORM pgark.check_component(component);
        IF backup_age_max IS NULL THEN
            DELETE FROM pgark.config_component AS c WHERE c.component = set_component.component;
        ELSIF backup_age_max <= interval '0' OR backup_age_max > interval '100 years' THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = 'the greatest age of a backup is outside the valid range',
                DETAIL = format('It is %s; it must be positive, and at most 100 years.', backup_age_max),
                HINT = 'NULL removes the setting.';
        ELSE
            INSERT INTO pgark.config_component AS c (component, backup_age_max, changed_by, changed_at)
                VALUES (set_component.component, set_component.backup_age_max, pgark.requester(), clock_timestamp())
                ON CONFLICT ON CONSTRAINT config_component_pkey DO UPDATE SET backup_age_max = EXCLUDED.backup_age_max,
                    changed_by = EXCLUDED.changed_by, changed_at = EXCLUDED.changed_at;
        END IF;
        PERFORM pgark.audit('set_component', component, jsonb_build_object('backup_age_max', backup_age_max));
    END
    $$;
COMMENT ON FUNCTION pgark.set_component(text, interval) IS
    'says how old the newest backup of a component may be before health() warns; NULL: any age';

-- What retention and restore plans are made from. Components without WAL get a cluster 0 whose one
-- segment is always there, so that the same rules count for them.
CREATE FUNCTION pgark.history(component text, repository text) RETURNS text
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT jsonb_build_object(
            'backups', (SELECT coalesce(jsonb_agg(jsonb_build_object('label', b.label,
                    'system_identifier', coalesce(b.system_identifier, 0), 'timeline', coalesce(b.timeline, 1),
                    'start_lsn', coalesce(b.start_lsn, '0/1'), 'stop_lsn', coalesce(b.stop_lsn, '0/2'), 'stopped_at', b.stopped_at,
                    'corrupt', b.corrupt_pages > 0 OR b.safety, 'expired', b.state = 'expired')), '[]')
                FROM pgark.catalog_backup AS b
                WHERE b.component = history.component AND b.repository = history.repository AND b.state <> 'damaged'),
            'clusters', (SELECT coalesce(jsonb_agg(c), '[]') FROM (
                SELECT k.system_identifier, k.segment_bytes, k.is_current AS current,
                    (SELECT coalesce(jsonb_agg(jsonb_build_object('timeline', t.timeline, 'ancestors', t.ancestors,
                        'begun_at', t.begun_at, 'newest_at', t.newest_at, 'covered_until', t.covered_until, 'runs', (SELECT coalesce(jsonb_agg(jsonb_build_array(w.first_wal, w.last_wal)), '[]')
                            FROM pgark.catalog_wal_range AS w WHERE w.repository = t.repository
                                AND w.system_identifier = t.system_identifier AND w.timeline = t.timeline))), '[]')
                        FROM pgark.catalog_timeline AS t
                        WHERE t.repository = k.repository AND t.system_identifier = k.system_identifier) AS timelines
                    FROM pgark.catalog_cluster AS k
                    WHERE k.repository = history.repository AND k.component = history.component
                UNION ALL
                SELECT 0, 16777216, true, '[{"timeline": 1, "ancestors": [], "newest_at": null,
                    "runs": [["000000010000000000000000", "000000010000000000000000"]]}]'
                    WHERE EXISTS (SELECT FROM pgark.catalog_backup AS b
                        WHERE b.component = history.component AND b.repository = history.repository AND b.system_identifier IS NULL)) AS c),
            'pins', (SELECT coalesce(jsonb_agg(jsonb_build_object('label', b.label, 'reason', b.pin_reason, 'until', b.pin_until)), '[]')
                FROM pgark.catalog_backup AS b
                WHERE b.component = history.component AND b.repository = history.repository AND b.pin_reason IS NOT NULL))::text
    $$;
COMMENT ON FUNCTION pgark.history(text, text) IS 'the catalog of a component in a repository, as decide_retention() and plan_restore() read it';

CREATE FUNCTION pgark.preview_expire(component text DEFAULT NULL, policy jsonb DEFAULT NULL, repository text DEFAULT NULL)
    RETURNS TABLE (component_name text, repository_name text, object text, first text, last text, stopped_at timestamptz,
                   keep boolean, reasons text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        checked text;
    BEGIN
        PERFORM pgark.check_database();
        IF component IS NOT NULL THEN
            PERFORM pgark.check_component(component);
        END IF;
        PERFORM pgark.check_repository(repository);
        IF policy IS NOT NULL THEN
            checked := pgark.check_retention(policy::text);
        END IF;
        RETURN QUERY
            SELECT k.component, k.repository, d.object, d.first, d.last, b.stopped_at, d.keep, d.reasons
            FROM (SELECT DISTINCT c.name AS component, r.name AS repository
                    FROM pgark.catalog_component AS c, pgark.catalog_repository AS r
                    WHERE (preview_expire.component IS NULL OR c.name = preview_expire.component)
                        AND (preview_expire.repository IS NULL OR r.name = preview_expire.repository)) AS k
            CROSS JOIN LATERAL pgark.decide_retention(coalesce(checked, (SELECT p.policy::text FROM pgark.config_retention AS p
                    WHERE p.component = k.component AND (p.repository IS NULL OR p.repository = k.repository)
                    ORDER BY p.repository NULLS LAST LIMIT 1), '{}'),
                pgark.history(k.component, k.repository), clock_timestamp()) AS d
            LEFT JOIN pgark.catalog_backup AS b
                ON d.object = 'backup' AND b.component = k.component AND b.repository = k.repository AND b.label = d.first
            ORDER BY k.component, k.repository, d.object, b.stopped_at DESC, d.first;
    END
    $$;
COMMENT ON FUNCTION pgark.preview_expire(text, jsonb, text) IS
    'what expire would keep and remove now, and why, by the policy that is set or by another one; from the catalog: backups under way are not in it';

CREATE FUNCTION pgark.mark(name text) RETURNS pg_lsn
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        lsn pg_lsn;
    BEGIN
        PERFORM pgark.check_database();
        IF name IS NULL OR name = '' OR octet_length(name) > 63 OR name ~ '[[:cntrl:]]' THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_name',
                MESSAGE = format('invalid name of a restore point: "%s"', coalesce(left(name, 80), 'NULL')),
                DETAIL = 'A name has 1 to 63 bytes and no control characters.', HINT = 'Choose another name.';
        END IF;
        IF starts_with(name, 'pgark:') THEN
            RAISE EXCEPTION USING ERRCODE = 'reserved_name',
                MESSAGE = format('restore point name "%s" is reserved', name),
                DETAIL = 'Names that begin with "pgark:" are those of backup sets.', HINT = 'Choose another name.';
        END IF;
        lsn := pg_create_restore_point(name);
        INSERT INTO pgark.catalog_restore_point AS p (system_identifier, timeline, lsn, name, marked_at)
            SELECT i.system_identifier, i.timeline, lsn, mark.name, clock_timestamp() FROM pgark.identity() AS i
            ON CONFLICT ON CONSTRAINT catalog_restore_point_pkey DO NOTHING;
        PERFORM pgark.audit('mark', name, jsonb_build_object('lsn', lsn));
        RETURN lsn;
    END
    $$;
COMMENT ON FUNCTION pgark.mark(text) IS
    'makes a restore point and returns its position; it stays even when the transaction is rolled back';

CREATE FUNCTION pgark.restore_plan(target_time timestamptz DEFAULT NULL, target_lsn pg_lsn DEFAULT NULL,
        target_name text DEFAULT NULL, repository text DEFAULT NULL)
    RETURNS TABLE (component text, kind text, repository_name text, backup text, stopped_at timestamptz, timeline integer,
                   lsn pg_lsn, first_wal text, last_wal text, segments bigint, missing_wal text, bytes bigint,
                   complete boolean, note text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        point record;
        point_lsn pg_lsn;
        target jsonb := '"latest"';
        moment timestamptz := target_time;
        c record;
        p record;
        b pgark.catalog_backup;
        covered timestamptz;
        oldest timestamptz;
    BEGIN
        PERFORM pgark.check_database();
        PERFORM pgark.check_repository(repository);
        IF num_nonnulls(target_time, target_lsn, target_name) > 1 THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = 'only one recovery target is possible', DETAIL = 'A time, an LSN and a name exclude one another.',
                HINT = 'Name one of them, or none for the newest moment.';
        END IF;
        IF target_time IS NOT NULL THEN
            -- No backup is older than Postgres; nor can JSON tell times before our era.
            IF target_time < '1986-01-01 00:00+00' THEN
                RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                    MESSAGE = 'the recovery target lies before the oldest backup', DETAIL = format('It is %s.', target_time),
                    HINT = 'SELECT * FROM pgark.recovery_window;';
            ELSIF target_time > clock_timestamp() THEN
                RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                    MESSAGE = 'the recovery target lies in the future', DETAIL = format('It is %s.', target_time),
                    HINT = 'Without a target, the newest moment is meant.';
            END IF;
            target := jsonb_build_object('time', target_time);
        ELSIF target_lsn IS NOT NULL THEN
            target := jsonb_build_object('lsn', target_lsn);
        ELSIF target_name IS NOT NULL THEN
            SELECT count(*) AS n, max(r.marked_at) AS marked_at, (array_agg(r.timeline))[1] AS timeline,
                    (array_agg(r.lsn))[1] AS lsn INTO point
                FROM pgark.catalog_restore_point AS r WHERE r.name = target_name;
            IF point.n = 0 THEN
                RAISE EXCEPTION USING ERRCODE = 'undefined_object',
                    MESSAGE = format('restore point "%s" does not exist', left(target_name, 80)),
                    DETAIL = 'The catalog knows no restore point of this name.',
                    HINT = 'SELECT name, marked_at FROM pgark.restore_point;';
            ELSIF point.n > 1 THEN
                RAISE EXCEPTION USING ERRCODE = 'ambiguous_alias',
                    MESSAGE = format('restore point "%s" exists %s times', target_name, point.n),
                    DETAIL = 'Recovery would stop at the first one that it meets.',
                    HINT = 'Choose one, and name its LSN: SELECT lsn, marked_at FROM pgark.restore_point;';
            END IF;
            target := jsonb_build_object('point', jsonb_build_object('timeline', point.timeline, 'lsn', point.lsn));
            moment := point.marked_at;
            point_lsn := point.lsn;
        END IF;
        IF NOT EXISTS (SELECT FROM pgark.catalog_backup AS x WHERE x.state = 'live') THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = 'there is no backup to restore', DETAIL = 'The catalog holds none.',
                HINT = 'Take one: SELECT pgark.request_backup(); if the repository has some, "pgark catalog rebuild" fills the catalog.';
        END IF;
        FOR c IN SELECT k.name, k.kind, k.stage FROM pgark.catalog_component AS k
            ORDER BY k.stage <> 'cluster', k.name
        LOOP
            component := c.name; kind := c.kind; repository_name := NULL; backup := NULL; stopped_at := NULL;
            timeline := NULL; lsn := NULL; first_wal := NULL; last_wal := NULL; segments := NULL; missing_wal := NULL;
            bytes := NULL; complete := false; note := NULL;
            IF c.stage = 'cluster' THEN
                SELECT x.*, r.name AS repository_name INTO p FROM pgark.catalog_repository AS r
                    CROSS JOIN LATERAL pgark.plan_restore(pgark.history(c.name, r.name), target::text) AS x
                    WHERE restore_plan.repository IS NULL OR r.name = restore_plan.repository
                    ORDER BY x.problem IS NOT NULL, x.missing_wal IS NOT NULL, r.required DESC, r.name LIMIT 1;
                CONTINUE WHEN NOT FOUND;
                IF p.problem IS NOT NULL THEN
                    SELECT min(w.from_time), max(w.to_time) INTO oldest, covered
                        FROM pgark.catalog_recovery_window AS w WHERE w.component = c.name;
                    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                        MESSAGE = CASE p.problem
                            WHEN 'no_backup' THEN format('there is no backup of component "%s"', c.name)
                            WHEN 'too_early' THEN 'the recovery target lies before the oldest backup'
                            ELSE 'the recovery target lies beyond the stored WAL' END,
                        DETAIL = format('Recovery can reach %s to %s.', coalesce(oldest::text, 'nothing'), coalesce(covered::text, 'an unknown moment')),
                        HINT = 'SELECT * FROM pgark.recovery_window;';
                END IF;
                SELECT * INTO b FROM pgark.catalog_backup AS x
                    WHERE x.component = c.name AND x.label = p.backup AND x.repository = p.repository_name;
                -- A timeline that has just begun has no sample of the clock of its own; the window knows its commits and its
                -- parent's samples. The greater one holds.
                SELECT max(x.until) INTO covered FROM (
                    SELECT t.covered_until AS until FROM pgark.catalog_timeline AS t
                        WHERE t.repository = p.repository_name AND t.system_identifier = b.system_identifier
                            AND t.timeline = p.timeline
                    UNION ALL
                    SELECT w.to_time FROM pgark.catalog_recovery_window AS w
                        WHERE w.repository = p.repository_name AND w.component = c.name
                            AND w.system_identifier = b.system_identifier AND w.timeline = p.timeline) AS x;
                repository_name := p.repository_name; backup := p.backup; stopped_at := b.stopped_at; timeline := p.timeline;
                lsn := CASE WHEN target_lsn IS NOT NULL THEN target_lsn ELSE point_lsn END;
                first_wal := p.first_wal; last_wal := p.last_wal; segments := p.segments; missing_wal := p.missing_wal;
                bytes := b.bytes_source;
                complete := p.missing_wal IS NULL AND (target_time IS NULL OR coalesce(target_time <= covered, false));
                note := CASE
                    WHEN p.missing_wal IS NOT NULL THEN 'WAL is missing: see pgark.wal_range'
                    WHEN target_time > covered THEN format('WAL is stored up to %s; what came later is not archived yet', covered)
                    WHEN covered IS NULL AND target_time IS NOT NULL THEN 'how far the stored WAL reaches is not known'
                    WHEN b.corrupt_pages > 0 THEN format('%s pages of the backup failed their checksum when it was taken', b.corrupt_pages)
                    END;
                -- When an LSN was written is not known here, but that it was after the backup is.
                moment := CASE WHEN target_lsn IS NOT NULL THEN b.stopped_at
                    ELSE coalesce(moment, covered, clock_timestamp()) END;
            ELSE
                -- Derived stores from before the moment, blobs from after it: what Postgres refers to is there.
                SELECT x.* INTO b FROM pgark.catalog_backup AS x
                    WHERE x.component = c.name AND x.state = 'live' AND NOT x.safety
                        AND (restore_plan.repository IS NULL OR x.repository = restore_plan.repository)
                        AND (c.stage <> 'derived' OR moment IS NULL OR x.stopped_at <= moment)
                    ORDER BY c.stage = 'blob' AND moment IS NOT NULL AND x.started_at < moment,
                        CASE WHEN c.stage = 'blob' AND moment IS NOT NULL AND x.started_at >= moment THEN x.stopped_at END,
                        x.stopped_at DESC
                    LIMIT 1;
                IF FOUND THEN
                    repository_name := b.repository; backup := b.label; stopped_at := b.stopped_at; bytes := b.bytes_source;
                    complete := true;
                    note := CASE
                        WHEN moment IS NULL THEN NULL
                        WHEN c.stage = 'blob' AND b.started_at < moment
                            THEN format('older than the target by %s: blobs that came later are missing', date_trunc('second', moment - b.stopped_at))
                        ELSE format('%s from the target', date_trunc('second', greatest(moment - b.stopped_at, b.stopped_at - moment))) END;
                ELSE
                    note := 'no backup from before the target';
                END IF;
            END IF;
            RETURN NEXT;
        END LOOP;
    END
    $$;
COMMENT ON FUNCTION pgark.restore_plan(timestamptz, pg_lsn, text, text) IS
    'which backups and which WAL a restore to a time, an LSN or a restore point would use, one row for each component; "pgark restore --dry-run" asks the repository itself';

CREATE FUNCTION pgark.restore_command(target_time timestamptz DEFAULT NULL, target_lsn pg_lsn DEFAULT NULL,
        target_name text DEFAULT NULL, target_dir text DEFAULT '/var/lib/postgresql/restored', repository text DEFAULT NULL,
        backup text DEFAULT NULL)
    RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        p record;
    BEGIN
        IF target_dir IS NULL OR NOT starts_with(target_dir, '/') THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = 'the directory to restore into is no absolute path',
                DETAIL = format('It is "%s".', coalesce(left(target_dir, 80), 'NULL')),
                HINT = 'Name a directory that is absent or empty.';
        ELSIF octet_length(target_dir) > 4096 THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = 'the path of the directory to restore into is too long',
                DETAIL = format('It has %s bytes; at most 4096 are allowed.', octet_length(target_dir)),
                HINT = 'Name a directory that is absent or empty.';
        END IF;
        IF backup IS NOT NULL THEN
            IF num_nonnulls(target_time, target_lsn, target_name) > 0 THEN
                RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                    MESSAGE = 'only one recovery target is possible', DETAIL = 'A backup by itself is the moment at which it ended.',
                    HINT = 'Leave the backup out to recover to another moment.';
            END IF;
            PERFORM pgark.check_database();
            PERFORM pgark.check_repository(repository);
            SELECT b.component INTO p FROM pgark.catalog_backup AS b
                WHERE b.label = backup AND b.kind = 'postgres' AND b.state = 'live'
                    AND (restore_command.repository IS NULL OR b.repository = restore_command.repository) LIMIT 1;
            IF NOT FOUND THEN
                RAISE EXCEPTION USING ERRCODE = 'undefined_object',
                    MESSAGE = format('backup "%s" does not exist', left(backup, 80)),
                    DETAIL = 'The catalog knows no live backup of the cluster by this label.',
                    HINT = 'SELECT label, repository, state FROM pgark.backup WHERE kind = ''postgres'' ORDER BY stopped_at DESC;';
            END IF;
            RETURN concat_ws(' ', 'pgark restore --component', pgark.shell_quote(p.component),
                '--target-dir', pgark.shell_quote(target_dir), '--backup', pgark.shell_quote(backup), '--target-immediate',
                CASE WHEN repository IS NOT NULL THEN '--repository ' || pgark.shell_quote(repository) END);
        END IF;
        SELECT * INTO p FROM pgark.restore_plan(target_time, target_lsn, target_name, repository) AS x WHERE x.kind = 'postgres';
        IF NOT FOUND OR p.complete IS NOT TRUE THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = 'a restore to this target would fail',
                DETAIL = coalesce(upper(left(p.note, 1)) || substr(p.note, 2) || '.', 'The agent has named no Postgres cluster.'),
                HINT = 'SELECT * FROM pgark.restore_plan(...);';
        END IF;
        RETURN concat_ws(' ', 'pgark restore --component', pgark.shell_quote(p.component),
            '--target-dir', pgark.shell_quote(target_dir),
            CASE WHEN target_time IS NOT NULL THEN '--target-time ' || pgark.shell_quote(
                to_char(target_time AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')) END,
            CASE WHEN target_lsn IS NOT NULL THEN '--target-lsn ' || pgark.shell_quote(target_lsn::text) END,
            CASE WHEN target_name IS NOT NULL THEN '--target-name ' || pgark.shell_quote(target_name) END,
            CASE WHEN target_name IS NOT NULL THEN '--target-timeline ' || p.timeline END,
            CASE WHEN repository IS NOT NULL THEN '--repository ' || pgark.shell_quote(repository) END);
    END
    $$;
COMMENT ON FUNCTION pgark.restore_command(timestamptz, pg_lsn, text, text, text, text) IS
    'the line for a shell that restores the cluster to a time, an LSN, a restore point or the end of a backup, into another directory';

-- Of one that this library does not understand nothing is known, and the view shows the others.
CREATE FUNCTION pgark.next_due(definition text) RETURNS timestamptz
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        RETURN pgark.schedule_next(definition, clock_timestamp());
    EXCEPTION WHEN OTHERS THEN
        RETURN NULL;
    END
    $$;
COMMENT ON FUNCTION pgark.next_due(text) IS 'when a schedule is due next, or NULL';

----------------------------------------------------------------------------------------------------
-- Views. Where core has a view of the kind, the columns come in its order.
----------------------------------------------------------------------------------------------------

CREATE VIEW pgark.component AS
    SELECT c.name, c.kind, c.stage, c.node, c.groups, b.label AS newest_backup, b.stopped_at AS newest_backup_at,
        b.repository AS newest_backup_repository, s.backup_age_max
    FROM pgark.catalog_component AS c
    LEFT JOIN pgark.config_component AS s ON s.component = c.name
    LEFT JOIN LATERAL (
        -- One look into the index for each repository.
        SELECT n.label, n.stopped_at, n.repository FROM pgark.catalog_repository AS r
            CROSS JOIN LATERAL (SELECT x.label, x.stopped_at, x.repository FROM pgark.catalog_backup AS x
                WHERE x.component = c.name AND x.repository = r.name AND x.state = 'live' AND NOT x.safety
                ORDER BY x.stopped_at DESC LIMIT 1) AS n
            ORDER BY n.stopped_at DESC, n.repository LIMIT 1) AS b ON true;
COMMENT ON VIEW pgark.component IS 'what is backed up, and the newest backup of each';

CREATE VIEW pgark.backup AS
    SELECT component, label, repository, kind, state, started_at, stopped_at, system_identifier, timeline, start_lsn,
        stop_lsn, bytes_source, bytes_stored, corrupt_pages, consistency, set_label, node, annotations, pin_reason,
        pin_until, job_ulid, root_digest, safety
    FROM pgark.catalog_backup;
COMMENT ON VIEW pgark.backup IS 'backups of all components, once for each repository that has them';

CREATE VIEW pgark.backup_set AS
    SELECT label, repository, started_at, stopped_at, begin_lsn, end_lsn, quiesce, consistency, complete, members, job_ulid
    FROM pgark.catalog_backup_set;
COMMENT ON VIEW pgark.backup_set IS 'components captured together around one moment';

CREATE VIEW pgark.job AS
    SELECT id, action, components, repository, options, state, requested_by, requested_at, schedule, due_at, attempts,
        attempts_max, node, started_at, heartbeat_at, lease_expires_at, not_before, cancel_requested_at,
        cancel_requested_by, finished_at, label, result, error_code, error_message, error_detail, error_hint,
        system_identifier, timeline, ulid
    FROM pgark.queue_job;
COMMENT ON VIEW pgark.job IS 'what was asked of the agent, and what became of it';

CREATE VIEW pgark.schedule AS
    SELECT s.id, s.name, s.definition ->> 'cron' AS cron,
        make_interval(secs => (s.definition ->> 'every_seconds')::double precision) AS every,
        s.definition ->> 'time_zone' AS time_zone, s.definition ->> 'action' AS action,
        (SELECT array_agg(c) FROM jsonb_array_elements_text(s.definition -> 'components') AS c) AS components,
        s.definition ->> 'repository' AS repository, s.definition -> 'options' AS options,
        s.definition ->> 'missed' AS missed, (s.definition ->> 'attempts_max')::integer AS attempts_max,
        s.version > p.stored_version AS pending, s.dropped, h.effective IS NOT NULL AS in_effect, h.effective,
        s.changed_by, s.changed_at, o.due_at AS last_due_at, o.outcome AS last_outcome, o.job_id AS last_job_id,
        o.source AS last_source,
        CASE WHEN h.effective IS NOT NULL THEN pgark.next_due(h.effective::text) END AS next_due_at
    FROM pgark.config_schedule AS s
    CROSS JOIN pgark.queue_policy AS p
    CROSS JOIN LATERAL (SELECT CASE WHEN p.stored_version > 0 THEN s.effective END AS effective) AS h
    LEFT JOIN LATERAL (SELECT q.due_at, q.outcome, q.job_id, q.source FROM pgark.queue_occurrence AS q
        WHERE q.schedule = s.name ORDER BY q.due_at DESC LIMIT 1) AS o ON true;
COMMENT ON VIEW pgark.schedule IS 'schedules as asked for; pending: not in the repository yet, effective (if any) holds until then';

CREATE VIEW pgark.retention AS
    SELECT r.component, r.repository, r.policy, r.version > p.stored_version AS pending,
        CASE WHEN p.stored_version > 0 THEN r.effective END AS effective, r.changed_by, r.changed_at
    FROM pgark.config_retention AS r CROSS JOIN pgark.queue_policy AS p;
COMMENT ON VIEW pgark.retention IS 'what to keep; pending: not in the repository yet, effective (if any) holds until then';

CREATE VIEW pgark.wal_range AS
    SELECT w.repository, c.component, w.system_identifier, w.timeline, w.first_wal, w.last_wal, w.segments,
        w.next_first_wal
    FROM pgark.catalog_wal_range AS w
    LEFT JOIN pgark.catalog_cluster AS c ON c.repository = w.repository AND c.system_identifier = w.system_identifier;
COMMENT ON VIEW pgark.wal_range IS 'runs of stored WAL without a gap; next_first_wal: where WAL goes on after the gap that follows';

CREATE VIEW pgark.recovery_window AS
    SELECT component, repository, system_identifier, timeline, from_time, to_time, from_lsn, to_lsn
    FROM pgark.catalog_recovery_window;
COMMENT ON VIEW pgark.recovery_window IS 'the moments that a recovery can reach';

CREATE VIEW pgark.restore_point AS
    SELECT name, marked_at, lsn, timeline, system_identifier FROM pgark.catalog_restore_point;
COMMENT ON VIEW pgark.restore_point IS 'restore points, from mark() and from WAL';

CREATE VIEW pgark.stat_archiver AS
    SELECT s.archived_count, s.last_archived_wal, s.last_archived_time, s.failed_count, s.last_failed_wal,
        s.last_failed_time, s.stats_reset, r.name AS repository, c.component, w.last_wal AS last_stored_wal,
        t.newest_at AS last_stored_time, t.covered_until
    FROM pg_stat_archiver AS s
    CROSS JOIN pgark.catalog_repository AS r
    LEFT JOIN pgark.catalog_cluster AS c ON c.repository = r.name AND c.is_current
    LEFT JOIN LATERAL (SELECT x.* FROM pgark.catalog_timeline AS x
        WHERE x.repository = r.name AND x.system_identifier = c.system_identifier
        ORDER BY x.timeline DESC LIMIT 1) AS t ON true
    LEFT JOIN LATERAL (SELECT x.last_wal FROM pgark.catalog_wal_range AS x
        WHERE x.repository = r.name AND x.system_identifier = t.system_identifier AND x.timeline = t.timeline
        ORDER BY x.first_wal DESC LIMIT 1) AS w ON true;
COMMENT ON VIEW pgark.stat_archiver IS
    'pg_stat_archiver, and beside it what each repository has of the newest timeline';

CREATE VIEW pgark.stat_progress_backup AS
    SELECT j.id AS job_id, p.phase, p.backup_total, p.backup_streamed, p.tablespaces_total, p.tablespaces_streamed,
        p.bytes_stored, j.action, j.components, j.node, j.attempts AS attempt, j.started_at, p.updated_at
    FROM pgark.queue_job AS j LEFT JOIN pgark.progress() AS p ON p.job_id = j.id
    WHERE j.state = 'running';
COMMENT ON VIEW pgark.stat_progress_backup IS
    'as pg_stat_progress_basebackup, for running jobs; phase and counters are NULL without pgark in shared_preload_libraries';

CREATE VIEW pgark.stat_repository AS
    SELECT r.name, r.kind, r.required, r.state, r.backup_count, r.object_count, r.stored_bytes, r.last_verified_at,
        w.oldest_restorable_time, w.newest_restorable_time, r.detail, r.hint, r.checked_at
    FROM pgark.catalog_repository AS r
    CROSS JOIN LATERAL (SELECT min(x.from_time) AS oldest_restorable_time, max(x.to_time) AS newest_restorable_time
        FROM pgark.catalog_recovery_window AS x WHERE x.repository = r.name) AS w;
COMMENT ON VIEW pgark.stat_repository IS 'repositories: how they are, what they hold, how far back and forward a recovery can go';

CREATE VIEW pgark.alert AS
    SELECT id, severity, code, component, repository, object, message, detail, hint, count, raised_at, seen_at, cleared_at
    FROM pgark.catalog_alert;
COMMENT ON VIEW pgark.alert IS 'what somebody should look at; cleared_at is NULL while it holds';

CREATE VIEW pgark.audit AS
    SELECT ulid, at, actor, node, action, object, detail, stored FROM pgark.catalog_audit;
COMMENT ON VIEW pgark.audit IS 'who did what';

----------------------------------------------------------------------------------------------------
-- Health
----------------------------------------------------------------------------------------------------

CREATE FUNCTION pgark.health() RETURNS TABLE (name text, ok boolean, detail text, hint text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        r record;
        n bigint;
        failed bigint;
        at timestamptz;
        seen boolean;
    BEGIN
        PERFORM pgark.check_database();

        name := 'agent';
        -- Any session may call itself so: this one must also be allowed to be the agent.
        SELECT count(*), min(a.backend_start) INTO n, at FROM pg_stat_activity AS a
            WHERE a.application_name = 'pgark agent' AND a.datname = current_database()
                AND pg_has_role(a.usesysid, 'pgark_agent', 'USAGE');
        ok := n > 0;
        detail := CASE WHEN ok THEN format('connected since %s', at) ELSE 'no agent is connected' END;
        hint := CASE WHEN NOT ok THEN 'Start it: pgark agent. Queued jobs wait for it.' END;
        RETURN NEXT;

        name := 'policy';
        SELECT count(*), min(c.changed_at) INTO n, at FROM (
            SELECT s.changed_at FROM pgark.config_schedule AS s, pgark.queue_policy AS p WHERE s.version > p.stored_version
            UNION ALL
            SELECT t.changed_at FROM pgark.config_retention AS t, pgark.queue_policy AS p WHERE t.version > p.stored_version) AS c;
        ok := n = 0 OR at > clock_timestamp() - interval '60 seconds';
        detail := CASE WHEN n = 0 THEN 'every change is in the repository'
            ELSE format('%s changes of schedules and retention are pending, the first since %s', n, at) END;
        hint := CASE WHEN NOT ok THEN 'They take effect when the agent has put them into every required repository: look into its log.' END;
        RETURN NEXT;

        name := 'scheduler';
        SELECT count(*) INTO n FROM pgark.config_schedule AS s WHERE NOT s.dropped;
        -- After a change of pgark.database it may be in another one still.
        seen := EXISTS (SELECT FROM pg_stat_activity AS a WHERE a.backend_type = 'pgark schedules' AND a.datname = current_database())
            AND current_setting('pgark.worker')::boolean;
        IF EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_cron') THEN
            -- By the same signs as use_pg_cron().
            EXECUTE $q$ SELECT EXISTS (SELECT FROM cron.job WHERE jobname = 'pgark' AND username = current_user AND active
                AND database = current_database() AND command = 'SELECT pgark.tick(''pg_cron'')'
                AND (coalesce(current_setting('cron.use_background_workers', true), 'off') = 'on'
                    OR nodeport = current_setting('port')::integer)) $q$ INTO ok;
            detail := CASE WHEN NOT ok THEN 'pg_cron is installed and has no job for pgark'
                WHEN current_setting('shared_preload_libraries') NOT LIKE '%pg_cron%' THEN 'pg_cron is installed and does not run'
                ELSE 'pg_cron evaluates the schedules' END;
            hint := CASE WHEN NOT ok THEN 'SELECT pgark.use_pg_cron();'
                WHEN detail LIKE '%not run' THEN 'Add pg_cron to shared_preload_libraries and restart.' END;
            ok := ok AND detail NOT LIKE '%not run' OR n = 0 OR seen;
        ELSE
            detail := CASE WHEN seen THEN 'the background worker evaluates the schedules'
                ELSE 'neither pg_cron nor the background worker is there: the agent evaluates the schedules while it is connected' END;
            ok := seen OR n = 0 OR EXISTS (SELECT FROM pg_stat_activity AS a WHERE a.application_name = 'pgark agent');
            hint := CASE WHEN NOT ok THEN 'Install pg_cron in this database, or add pgark to shared_preload_libraries and restart.' END;
        END IF;
        RETURN NEXT;

        name := 'preload';
        ok := true;
        detail := CASE WHEN pgark.is_preloaded() THEN 'pgark is in shared_preload_libraries'
            ELSE 'pgark is not in shared_preload_libraries: no background worker, no progress of jobs; nothing else needs it' END;
        hint := NULL;
        RETURN NEXT;

        name := 'archiving';
        SELECT s.* INTO r FROM pg_stat_archiver AS s;
        ok := current_setting('archive_mode') <> 'off'
            AND (r.last_failed_time IS NULL OR r.last_archived_time > r.last_failed_time);
        detail := CASE WHEN current_setting('archive_mode') = 'off' THEN 'archive_mode is off: no recovery beyond the end of a backup'
            WHEN NOT ok THEN format('%s could not be archived at %s', r.last_failed_wal, r.last_failed_time)
            WHEN r.last_archived_wal IS NULL THEN 'nothing was archived yet'
            ELSE format('%s was archived at %s', r.last_archived_wal, r.last_archived_time) END;
        hint := CASE WHEN NOT ok THEN 'See docs/guide/archiving.md, or run "pgark check".' END;
        RETURN NEXT;

        FOR r IN SELECT * FROM pgark.component AS c ORDER BY c.name LOOP
            name := 'backup of ' || r.name;
            ok := r.newest_backup IS NOT NULL
                AND (r.backup_age_max IS NULL OR clock_timestamp() - r.newest_backup_at < r.backup_age_max);
            detail := CASE WHEN r.newest_backup IS NULL THEN 'there is none'
                ELSE format('the newest one is %s, of %s', r.newest_backup, r.newest_backup_at) END;
            hint := CASE WHEN NOT ok THEN format('SELECT pgark.request_backup(ARRAY[%L]);', r.name) END;
            RETURN NEXT;
        END LOOP;

        FOR r IN SELECT * FROM pgark.catalog_repository AS x ORDER BY x.name LOOP
            name := 'repository ' || r.name;
            ok := r.state = 'ok';
            detail := coalesce(r.detail, format('%s, looked at %s', r.state, r.checked_at));
            hint := CASE WHEN NOT ok THEN coalesce(r.hint, 'Run "pgark check".') END;
            RETURN NEXT;
        END LOOP;

        name := 'wal';
        SELECT count(*) INTO n FROM pgark.catalog_wal_range AS w JOIN pgark.catalog_cluster AS c USING (repository, system_identifier)
            WHERE c.is_current AND w.next_first_wal IS NOT NULL;
        ok := n = 0;
        detail := 'no gap is known';
        IF NOT ok THEN
            SELECT format('%s gaps, the first in %s: after %s', n, w.repository, w.last_wal) INTO detail
                FROM pgark.catalog_wal_range AS w JOIN pgark.catalog_cluster AS c USING (repository, system_identifier)
                WHERE c.is_current AND w.next_first_wal IS NOT NULL ORDER BY w.first_wal, w.repository LIMIT 1;
        END IF;
        hint := CASE WHEN NOT ok THEN 'A backup after the gap makes the later moments recoverable: SELECT pgark.request_backup();' END;
        RETURN NEXT;

        name := 'jobs';
        SELECT count(*) INTO n FROM pgark.queue_job AS x WHERE x.state = 'running' AND x.lease_expires_at < clock_timestamp();
        SELECT count(*) INTO failed FROM (SELECT max(x.id) AS id FROM pgark.queue_job AS x
                WHERE x.finished_at > clock_timestamp() - interval '7 days' GROUP BY x.action, x.schedule) AS last
            JOIN pgark.queue_job AS j USING (id) WHERE j.state IN ('failed', 'orphaned');
        ok := n = 0 AND failed = 0;
        detail := CASE WHEN n > 0 THEN format('%s running jobs have lost their agent: not heard of within their lease', n)
            WHEN failed > 0 THEN format('%s kinds of jobs failed the last time', failed)
            ELSE 'the last of each kind did not fail' END;
        hint := CASE WHEN n > 0 THEN 'Look for the agent. SELECT pgark.tick(); ends their attempt, and so does whoever evaluates the schedules.'
            WHEN failed > 0 THEN 'SELECT id, action, schedule, error_message FROM pgark.job WHERE state IN (''failed'', ''orphaned'') ORDER BY id DESC;' END;
        RETURN NEXT;

        name := 'alerts';
        SELECT count(*), min(a.message) INTO n, detail FROM pgark.catalog_alert AS a WHERE a.cleared_at IS NULL;
        ok := n = 0;
        detail := CASE WHEN ok THEN 'none' ELSE format('%s, the first: %s', n, detail) END;
        hint := CASE WHEN NOT ok THEN 'SELECT * FROM pgark.alert WHERE cleared_at IS NULL;' END;
        RETURN NEXT;
    END
    $$;
COMMENT ON FUNCTION pgark.health() IS 'how things are now: one row for each thing to be looked at, ok or not, and what to do';

CREATE FUNCTION pgark.doctor() RETURNS TABLE (name text, ok boolean, detail text, hint text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT name, ok, detail, CASE WHEN NOT ok THEN hint END FROM (VALUES
            (1, 'wal_level', current_setting('wal_level') <> 'minimal',
                'wal_level is ' || current_setting('wal_level'),
                'ALTER SYSTEM SET wal_level = replica; and restart: archiving needs it.'),
            (2, 'archive_mode', current_setting('archive_mode') <> 'off',
                'archive_mode is ' || current_setting('archive_mode'),
                'ALTER SYSTEM SET archive_mode = on; and restart.'),
            (3, 'archive destination', coalesce(nullif(current_setting('archive_library'), '') = 'pgark_archive',
                    current_setting('archive_command') LIKE '%pgark%archive-push%'),
                format('archive_library is %L, archive_command is %L', current_setting('archive_library'), current_setting('archive_command')),
                'ALTER SYSTEM SET archive_command = ''pgark archive-push %p''; or archive_library = ''pgark_archive''; then SELECT pg_reload_conf();'),
            (4, 'archive_timeout', current_setting('archive_timeout')::interval BETWEEN interval '1 second' AND interval '1 hour',
                'archive_timeout is ' || current_setting('archive_timeout') || ': so much of a quiet cluster''s work may be lost with its disk',
                'ALTER SYSTEM SET archive_timeout = ''60s''; SELECT pg_reload_conf();'),
            (5, 'max_slot_wal_keep_size', current_setting('max_slot_wal_keep_size') <> '-1'
                    OR NOT EXISTS (SELECT FROM pg_replication_slots),
                'max_slot_wal_keep_size is ' || current_setting('max_slot_wal_keep_size'),
                'There are replication slots, and nothing limits the WAL that they keep: ALTER SYSTEM SET max_slot_wal_keep_size = ''10GB''; SELECT pg_reload_conf();'),
            (6, 'full_page_writes', current_setting('full_page_writes')::boolean,
                'full_page_writes is ' || current_setting('full_page_writes'),
                'ALTER SYSTEM SET full_page_writes = on; SELECT pg_reload_conf(); a backup of a running server needs it.'),
            (7, 'fsync', current_setting('fsync')::boolean, 'fsync is ' || current_setting('fsync'),
                'ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf();'),
            (8, 'data_checksums', current_setting('data_checksums')::boolean, 'data_checksums is ' || current_setting('data_checksums'),
                'Without them damaged pages are backed up unseen. With the server stopped: pg_checksums --enable.'),
            (9, 'wal_compression', current_setting('wal_compression') <> 'off', 'wal_compression is ' || current_setting('wal_compression'),
                'ALTER SYSTEM SET wal_compression = lz4; SELECT pg_reload_conf(); less WAL to archive.'),
            (10, 'track_commit_timestamp', true, 'track_commit_timestamp is ' || current_setting('track_commit_timestamp') || '; pgark does not need it', NULL),
            (11, 'roles', (SELECT count(*) = 2 FROM pg_roles WHERE rolname IN ('pgark_operator', 'pgark_agent')),
                'pgark_operator and pgark_agent are what rights are granted to',
                'Reinstall the extension, or: CREATE ROLE pgark_operator; CREATE ROLE pgark_agent; and grant anew.')
        ) AS v (place, name, ok, detail, hint) ORDER BY place
    $$;
COMMENT ON FUNCTION pgark.doctor() IS 'settings of this server that backups depend on, and the command that mends each; "pgark check" looks at the host as well';

----------------------------------------------------------------------------------------------------
-- Rights: nothing for PUBLIC; then what each role needs.
----------------------------------------------------------------------------------------------------

REVOKE ALL ON SCHEMA pgark FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA pgark FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA pgark FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA pgark FROM PUBLIC;

GRANT USAGE ON SCHEMA pgark TO pg_monitor, pgark_operator, pgark_agent;

GRANT SELECT ON pgark.component, pgark.backup, pgark.backup_set, pgark.job, pgark.schedule, pgark.retention,
    pgark.wal_range, pgark.recovery_window, pgark.restore_point, pgark.stat_archiver, pgark.stat_progress_backup,
    pgark.stat_repository, pgark.alert, pgark.audit TO pg_monitor, pgark_operator, pgark_agent;
-- Functions that views call are called with the rights of who asks.
GRANT EXECUTE ON FUNCTION pgark.version(), pgark.progress(), pgark.schedule_next(text, timestamptz), pgark.next_due(text), pgark.is_preloaded(),
    pgark.health(), pgark.doctor(), pgark.preview_expire(text, jsonb, text), pgark.restore_plan(timestamptz, pg_lsn, text, text),
    pgark.restore_command(timestamptz, pg_lsn, text, text, text, text) TO pg_monitor, pgark_operator, pgark_agent;

GRANT EXECUTE ON FUNCTION pgark.request_backup(text[], text), pgark.request_verify(text, text, text, text),
    pgark.request_expire(text, text, boolean), pgark.request_gc(text, boolean), pgark.request_restore(text, text, text[], text),
    pgark.schedule(text, text, text, text[], jsonb), pgark.schedule(text, interval, text, text[], jsonb),
    pgark.unschedule(text), pgark.tick(text), pgark.use_pg_cron(), pgark.set_retention(text, jsonb, text),
    pgark.set_component(text, interval), pgark.mark(text), pgark.cancel(bigint), pgark.wait(bigint, interval),
    pgark.look_at_job(bigint), pgark.wait_is_over(bigint, interval), pgark.raise_outcome(bigint),
    pgark.check_timeout(interval), pgark.in_transaction_block(), pgark.no_job(bigint) TO pgark_operator;
GRANT EXECUTE ON PROCEDURE pgark.wait_for(bigint, interval) TO pgark_operator;

GRANT EXECUTE ON FUNCTION pgark.register_agent(text, text, timestamptz), pgark.claim_job(text, text[]),
    pgark.heartbeat_job(bigint, text),
    pgark.report_progress(bigint, text, text, bigint, bigint, bigint, bigint, bigint),
    pgark.finish_job(bigint, text, text, text, jsonb, boolean, text, text, text, text),
    pgark.policy_to_store(), pgark.policy_stored(bigint, jsonb), pgark.policy_import(jsonb, jsonb, boolean),
    pgark.record_occurrence(text, timestamptz), pgark.tick(text) TO pgark_agent;
GRANT SELECT ON pgark.queue_policy, pgark.queue_job, pgark.queue_occurrence, pgark.config_schedule, pgark.config_retention TO pgark_agent;
GRANT SELECT, INSERT, UPDATE, DELETE ON pgark.catalog_repository, pgark.catalog_component, pgark.catalog_cluster,
    pgark.catalog_timeline, pgark.catalog_wal_range, pgark.catalog_backup, pgark.catalog_backup_set,
    pgark.catalog_recovery_window, pgark.catalog_restore_point, pgark.catalog_alert, pgark.catalog_audit TO pgark_agent;
GRANT USAGE ON SEQUENCE pgark.catalog_alert_id_seq TO pgark_agent;
