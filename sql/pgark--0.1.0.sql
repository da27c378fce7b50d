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
                   missing_wal text, target_lsn pg_lsn, complete boolean, note text)
    LANGUAGE c STABLE STRICT
    AS 'MODULE_PATHNAME', 'plan_restore_wrapper';
COMMENT ON FUNCTION pgark.plan_restore(text, text) IS
    'which backup and which WAL of a history lead to a recovery target';

CREATE FUNCTION pgark.shell_quote(word text) RETURNS text
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'shell_quote_wrapper';
COMMENT ON FUNCTION pgark.shell_quote(text) IS
    'a text as one word of a POSIX shell; control characters are refused';

CREATE FUNCTION pgark.in_transaction_block() RETURNS boolean
    LANGUAGE c STABLE STRICT
    AS 'MODULE_PATHNAME', 'in_transaction_block_wrapper';
COMMENT ON FUNCTION pgark.in_transaction_block() IS
    'whether the session is between BEGIN and COMMIT';

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
COMMENT ON COLUMN pgark.config_schedule.effective IS 'as it holds; NULL until the agent has put it into the repository';

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
    backup_age_max interval NOT NULL CHECK (backup_age_max > interval '0'),
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
    reference jsonb
);
COMMENT ON TABLE pgark.queue_policy IS 'how far the policy (schedules, retention) has been put into the repository';
COMMENT ON COLUMN pgark.queue_policy.version IS 'of the newest change';
COMMENT ON COLUMN pgark.queue_policy.stored_version IS 'the newest change that is in the repository';
COMMENT ON COLUMN pgark.queue_policy.reference IS 'the agent''s note of the repository''s records that this agrees with';
INSERT INTO pgark.queue_policy DEFAULT VALUES;

CREATE TABLE pgark.queue_job (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    ulid text NOT NULL UNIQUE,
    action text NOT NULL CHECK (action IN ('backup', 'verify', 'expire', 'gc')),
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

CREATE TABLE pgark.catalog_component (
    name text PRIMARY KEY,
    kind text NOT NULL,
    node text NOT NULL,
    groups text[] NOT NULL DEFAULT '{}',
    stage text NOT NULL GENERATED ALWAYS AS (CASE
        WHEN kind = 'postgres' THEN 'cluster'
        WHEN kind IN ('redis', 'qdrant', 'chroma', 'elasticsearch') THEN 'derived'
        ELSE 'blob' END) STORED
);
COMMENT ON TABLE pgark.catalog_component IS 'components of the agent''s configuration; the Postgres cluster has kind postgres';
COMMENT ON COLUMN pgark.catalog_component.stage IS
    'when it is captured within a backup set: derived from Postgres before, blobs that Postgres refers to after it';

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
    PRIMARY KEY (repository, system_identifier, timeline)
);
COMMENT ON TABLE pgark.catalog_timeline IS 'timelines with stored WAL';
COMMENT ON COLUMN pgark.catalog_timeline.ancestors IS
    'from the history file, oldest first: [{"timeline": 1, "switch": "0/3000000"}]; NULL: the file is missing';
COMMENT ON COLUMN pgark.catalog_timeline.newest_at IS 'when its newest segment was stored';
COMMENT ON COLUMN pgark.catalog_timeline.covered_until IS 'newest instant of the database''s clock whose WAL is stored';

CREATE TABLE pgark.catalog_wal_range (
    repository text NOT NULL,
    system_identifier bigint NOT NULL,
    timeline integer NOT NULL,
    first_wal text NOT NULL,
    last_wal text NOT NULL,
    segments bigint NOT NULL,
    PRIMARY KEY (repository, system_identifier, timeline, first_wal)
);
COMMENT ON TABLE pgark.catalog_wal_range IS 'runs of stored WAL segments without a gap';

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
COMMENT ON COLUMN pgark.catalog_backup.pin_reason IS 'NULL: not pinned';
CREATE INDEX catalog_backup_newest ON pgark.catalog_backup (component, repository, stopped_at DESC) WHERE state = 'live';
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

CREATE TABLE pgark.catalog_restore_point (
    system_identifier bigint NOT NULL,
    timeline integer NOT NULL,
    lsn pg_lsn NOT NULL,
    name text NOT NULL,
    marked_at timestamptz NOT NULL,
    PRIMARY KEY (system_identifier, timeline, lsn)
);
COMMENT ON TABLE pgark.catalog_restore_point IS 'restore points, from mark() and from what the agent found in WAL';
CREATE INDEX catalog_restore_point_name ON pgark.catalog_restore_point (name, marked_at DESC);

CREATE TABLE pgark.catalog_archiver (
    repository text PRIMARY KEY,
    archived_count bigint NOT NULL,
    last_archived_wal text,
    last_archived_time timestamptz,
    failed_count bigint NOT NULL,
    last_failed_wal text,
    last_failed_time timestamptz,
    stats_reset timestamptz
);
COMMENT ON TABLE pgark.catalog_archiver IS 'the agent''s counts of WAL files put into each repository, since it started';

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
                MESSAGE = format('invalid name of a %s: %s', what, coalesce(quote_literal(left(name, 80)), 'NULL')),
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
                MESSAGE = format('component or group %s does not exist', quote_literal(unknown)),
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
            MESSAGE = format('repository %s does not exist', quote_literal(left(repository, 80))),
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

-- The kind of the change of timeline that began this one, from the last line of its history file.
-- A promoted standby and a recovery to the end of WAL reached no target: nothing was rewound.
CREATE FUNCTION pgark.timeline_begin(timeline integer) RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        history text := pg_read_file('pg_wal/' || lpad(upper(to_hex(timeline)), 8, '0') || '.history', 0, 1048576, true);
        reason text := substring(rtrim(history, E'\n') FROM '^(?:.*\n)?[0-9]+\t[0-9A-F]+/[0-9A-F]+\t([^\n]*)$');
    BEGIN
        RETURN CASE WHEN reason = 'no recovery target specified' THEN 'failover' ELSE 'recovery' END;
    END
    $$;
COMMENT ON FUNCTION pgark.timeline_begin(integer) IS
    'failover when a timeline began at the end of the former one, recovery when it began in its past or when that is unknown';

CREATE FUNCTION pgark.settle_jobs() RETURNS integer
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        here record;
        job pgark.queue_job;
        begun text;
        settled integer := 0;
    BEGIN
        SELECT * INTO here FROM pgark.identity();
        FOR job IN SELECT * FROM pgark.queue_job AS j
            WHERE j.state IN ('queued', 'running')
                AND (j.system_identifier, j.timeline) <> (here.system_identifier, here.timeline)
            ORDER BY j.id FOR UPDATE SKIP LOCKED
        LOOP
            begun := coalesce(begun, pgark.timeline_begin(here.timeline));
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
    'decides on open jobs of another timeline: after a failover queued ones stay and running ones have failed; after a recovery to the past and in a copy all are orphaned';

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
                MESSAGE = format('a job cannot finish as %s', coalesce(quote_literal(left(outcome, 80)), 'NULL')),
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

CREATE FUNCTION pgark.policy_stored(version bigint, reference jsonb) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    DECLARE
        changed integer;
        n integer;
    BEGIN
        PERFORM pgark.check_database();
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
        stored bigint;
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
        SELECT p.stored_version INTO stored FROM pgark.queue_policy AS p FOR UPDATE;
        -- What was asked for here and is not in the repository yet stays, unless the tables were rewound.
        DELETE FROM pgark.config_schedule AS s
            WHERE (s.version <= stored OR coalesce(discard_pending, false))
                AND NOT EXISTS (SELECT FROM jsonb_array_elements(document -> 'schedules') AS d WHERE d ->> 'name' = s.name);
        GET DIAGNOSTICS changed = ROW_COUNT;
        DELETE FROM pgark.config_retention AS r
            WHERE (r.version <= stored OR coalesce(discard_pending, false))
                AND NOT EXISTS (SELECT FROM jsonb_array_elements(document -> 'retention') AS d
                    WHERE d ->> 'component' = r.component AND d ->> 'repository' IS NOT DISTINCT FROM r.repository);
        GET DIAGNOSTICS n = ROW_COUNT;
        changed := changed + n;
        FOR item IN SELECT pgark.check_schedule(d::text)::jsonb FROM jsonb_array_elements(document -> 'schedules') AS d LOOP
            INSERT INTO pgark.config_schedule AS s (name, definition, version, changed_by, changed_at, effective, effective_at)
                VALUES (item ->> 'name', item, 0, pgark.requester(), clock_timestamp(), item, clock_timestamp())
                ON CONFLICT (name) DO UPDATE SET effective = EXCLUDED.effective, effective_at = EXCLUDED.effective_at,
                    definition = CASE WHEN s.version <= stored OR coalesce(discard_pending, false)
                        THEN EXCLUDED.definition ELSE s.definition END,
                    version = CASE WHEN coalesce(discard_pending, false) THEN least(s.version, stored) ELSE s.version END,
                    dropped = s.dropped AND s.version > stored AND NOT coalesce(discard_pending, false)
                WHERE s.effective IS DISTINCT FROM EXCLUDED.effective
                    OR coalesce(discard_pending, false) AND (s.dropped OR s.definition <> EXCLUDED.definition);
            GET DIAGNOSTICS n = ROW_COUNT;
            changed := changed + n;
        END LOOP;
        FOR item IN SELECT jsonb_build_object('component', d -> 'component', 'repository', d -> 'repository',
                'policy', pgark.check_retention((d -> 'policy')::text)::jsonb) FROM jsonb_array_elements(document -> 'retention') AS d LOOP
            INSERT INTO pgark.config_retention AS r (component, repository, policy, version, changed_by, changed_at, effective, effective_at)
                VALUES (item ->> 'component', item ->> 'repository', item -> 'policy', 0, pgark.requester(),
                    clock_timestamp(), item -> 'policy', clock_timestamp())
                ON CONFLICT (component, repository) DO UPDATE SET effective = EXCLUDED.effective, effective_at = EXCLUDED.effective_at,
                    policy = CASE WHEN r.version <= stored OR coalesce(discard_pending, false)
                        THEN EXCLUDED.policy ELSE r.policy END,
                    version = CASE WHEN coalesce(discard_pending, false) THEN least(r.version, stored) ELSE r.version END
                WHERE r.effective IS DISTINCT FROM EXCLUDED.effective
                    OR coalesce(discard_pending, false) AND r.policy <> EXCLUDED.policy;
            GET DIAGNOSTICS n = ROW_COUNT;
            changed := changed + n;
        END LOOP;
        UPDATE pgark.queue_policy AS p SET reference = policy_import.reference, stored_at = clock_timestamp(),
            version = CASE WHEN coalesce(discard_pending, false) THEN p.stored_version ELSE p.version END;
        RETURN changed;
    END
    $$;
COMMENT ON FUNCTION pgark.policy_import(jsonb, jsonb, boolean) IS
    'takes the repository''s policy over: another one wrote it, or the tables were rewound (discard_pending); returns how many rows changed';

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

