-- Jobs: requested, claimed, kept alive, finished, retried, canceled, waited for.
\set SHOW_CONTEXT never

-- The catalog, as the agent would fill it.
INSERT INTO pgark.catalog_repository (name, kind, required, state, checked_at) VALUES ('local', 'posix', true, 'ok', now());
INSERT INTO pgark.catalog_component (name, kind, stage, node, groups) VALUES ('main', 'postgres', 'cluster', 'here', '{all}'), ('cache', 'redis', 'derived', 'here', '{all,stores}');

SELECT pgark.request_backup() AS job \gset
SELECT state, components, attempts, attempts_max, requested_by, timeline FROM pgark.job WHERE id = :job;
SELECT pgark.request_backup(ARRAY['stores', 'main', 'main'], 'local') AS second \gset
SELECT components, repository FROM pgark.job WHERE id = :second;

-- Waiting in the transaction that asked: an error, never a hang.
BEGIN;
SELECT pgark.request_backup() AS own \gset
SELECT pgark.wait(:own);
ROLLBACK;
SELECT pgark.wait(:own);
SELECT pgark.wait(pgark.request_backup());
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT pgark.wait(:job);
ROLLBACK;
SELECT pgark.wait(:job, interval '0');
SELECT pgark.wait(:job, interval '-1 second');
SELECT pgark.wait(:job, NULL);
SELECT pgark.wait(NULL);
BEGIN;
CALL pgark.wait_for(:job);
ROLLBACK;
CREATE FUNCTION pg_temp.waits(job bigint) RETURNS void LANGUAGE plpgsql AS 'BEGIN CALL pgark.wait_for(job); END';
SELECT pg_temp.waits(:job);
CREATE PROCEDURE pg_temp.waits_as_procedure(job bigint) LANGUAGE plpgsql AS $$ BEGIN CALL pgark.wait_for(job, interval '0.1 seconds'); END $$;
CALL pg_temp.waits_as_procedure(:job);
CALL pgark.wait_for(:job, interval '0.3 seconds');

-- The oldest first, one at a time.
SELECT id = :job AS oldest, claim, action, components, attempt, requested_by, lease_seconds FROM pgark.claim_job('host-a') \gset a_
SELECT :'a_oldest' AS oldest, :'a_action' AS action, :a_attempt AS attempt, :a_lease_seconds AS lease;
SELECT id = :second AS next, claim FROM pgark.claim_job('host-b', ARRAY['verify', 'backup']) \gset b_
SELECT :'b_next' AS next;
SELECT count(*) AS none_left FROM pgark.claim_job('host-c');
SELECT id = :job AS first, state, node, attempts, lease_expires_at > now() AS leased FROM pgark.job WHERE state = 'running' ORDER BY id;
SELECT pgark.heartbeat_job(:job, :'a_claim'), pgark.heartbeat_job(:job, 'somebody else''s'), pgark.heartbeat_job(0, :'a_claim');
SELECT pgark.report_progress(:job, :'a_claim', 'streaming database files', 1000, 250, 1, 0, 99), pgark.report_progress(:job, 'x', 'lie');
SELECT phase, backup_total, backup_streamed, tablespaces_total, tablespaces_streamed, bytes_stored, node, attempt FROM pgark.stat_progress_backup WHERE job_id = :job;

-- Done; nobody else's end counts.
SELECT pgark.finish_job(:job, :'b_claim', 'failed') AS not_its_claim;
SELECT pgark.finish_job(:job, :'a_claim', 'succeeded', '20260101T000000Z-AAAA', '{"bytes": 7}');
SELECT pgark.finish_job(:job, :'a_claim', 'failed') AS too_late;
SELECT state, label, result, attempts, claim IS NULL AS free FROM pgark.queue_job WHERE id = :job;
SELECT pgark.wait(:job);
CALL pgark.wait_for(:job);
SELECT count(*) AS no_progress_left FROM pgark.progress() WHERE job_id = :job;

-- A retryable failure comes back, later; the lease of a silent agent ends; then it has failed.
SELECT pgark.finish_job(:second, :'b_claim', 'failed', retry => true, error_code => 'repository_unreachable', error_message => 'no route to host');
SELECT state, attempts, error_code, not_before > clock_timestamp() + interval '20 seconds' AS later FROM pgark.job WHERE id = :second;
SELECT count(*) AS not_yet FROM pgark.claim_job('host-b');
UPDATE pgark.queue_job SET not_before = now() WHERE id = :second;
SELECT attempt FROM pgark.claim_job('host-b');
UPDATE pgark.queue_job SET lease_expires_at = now() - interval '1 second' WHERE id = :second;
SELECT count(*) AS not_yet FROM pgark.claim_job('host-c');
SELECT state, attempts, error_code, error_message ~ '^node host-b has not been heard of since' AS silent FROM pgark.job WHERE id = :second;
UPDATE pgark.queue_job SET not_before = now() WHERE id = :second;
SELECT attempt FROM pgark.claim_job('host-c');
UPDATE pgark.queue_job SET lease_expires_at = now() - interval '1 second' WHERE id = :second;
SELECT pgark.tick('agent');
SELECT state, attempts, finished_at IS NOT NULL AS over FROM pgark.job WHERE id = :second;
SELECT pgark.wait(:second);
\set VERBOSITY sqlstate
CALL pgark.wait_for(:second);
\set VERBOSITY default

-- Cancel: queued, running, too late.
SELECT pgark.request_verify(level => 'pages') AS job \gset
SELECT pgark.cancel(:job), pgark.cancel(:job) AS again;
SELECT state, cancel_requested_by FROM pgark.job WHERE id = :job;
SELECT pgark.request_expire('main', dry_run => true) AS job \gset
SELECT claim FROM pgark.claim_job('host-a') \gset a_
SELECT pgark.cancel(:job);
SELECT pgark.heartbeat_job(:job, :'a_claim');
SELECT pgark.finish_job(:job, :'a_claim', 'canceled');
SELECT state, options FROM pgark.job WHERE id = :job;
-- What is done is done, whoever asked to cancel it.
SELECT pgark.request_gc() AS job \gset
SELECT claim FROM pgark.claim_job('host-a') \gset a_
SELECT pgark.cancel(:job);
SELECT pgark.finish_job(:job, :'a_claim', 'succeeded');
-- A failure after a cancel is no reason to try again.
SELECT pgark.request_gc() AS job \gset
SELECT claim FROM pgark.claim_job('host-a') \gset a_
SELECT pgark.cancel(:job);
SELECT pgark.finish_job(:job, :'a_claim', 'failed', retry => true);
-- Waiting in the transaction that cancels, even where a savepoint does: the same error as for a request.
SELECT pgark.request_gc() AS job \gset
SELECT claim FROM pgark.claim_job('host-a') \gset a_
BEGIN;
SAVEPOINT within;
SELECT pgark.cancel(:job);
RELEASE within;
SELECT pgark.wait(:job);
ROLLBACK;
-- The agent is gone, and nobody evaluates the schedules: health() says so.
UPDATE pgark.queue_job SET lease_expires_at = now() - interval '1 second' WHERE id = :job;
SELECT ok, detail, hint FROM pgark.health() WHERE name = 'jobs';
SELECT pgark.tick();
SELECT ok, detail FROM pgark.health() WHERE name = 'jobs';
SELECT pgark.cancel(:job);
\set VERBOSITY sqlstate
SELECT pgark.raise_outcome(:job);
\set VERBOSITY default
SELECT pgark.raise_outcome(NULL), pgark.wait_is_over(NULL, NULL);
SELECT pgark.wait_is_over(-1, NULL);
SELECT pgark.cancel(-1);
SELECT pgark.cancel(NULL);

-- Another timeline: whose begin is unknown counts as a recovery to the past.
SELECT pgark.request_backup() AS job \gset
UPDATE pgark.queue_job SET timeline = 99 WHERE id = :job;
SELECT count(*) AS handed_to_nobody FROM pgark.claim_job('host-a');
SELECT state, error_code FROM pgark.job WHERE id = :job;
SELECT pgark.request_backup() AS job \gset
UPDATE pgark.queue_job SET system_identifier = 7 WHERE id = :job;
SELECT pgark.tick();
SELECT state, error_code FROM pgark.job WHERE id = :job;

-- Finished jobs do not stay for ever.
UPDATE pgark.queue_job SET finished_at = now() - interval '91 days' WHERE id = :job;
SELECT pgark.tick();
SELECT count(*) AS gone FROM pgark.job WHERE id = :job;

-- What is refused.
SELECT pgark.request_expire('main', dry_run => NULL);
SELECT pgark.request_gc(dry_run => NULL);
SELECT pgark.request_backup(ARRAY['nobody']);
SELECT pgark.request_backup(ARRAY[NULL]::text[]);
SELECT pgark.request_backup(ARRAY[['main'], ['cache']]);
SELECT pgark.request_restore('main');
SELECT pgark.request_restore('stores');
SELECT pgark.request_restore('cache', 'x');
SELECT pgark.request_restore('cache', selection => '{}');
SELECT pgark.request_restore('cache', NULL, ARRAY['keys:*'], 'local') IS NOT NULL AS asked;
SELECT components, repository, options, state FROM pgark.job ORDER BY id DESC LIMIT 1;
SELECT pgark.cancel(max(id)) FROM pgark.job;
SELECT pgark.schedule('again', '* * * * *', 'restore', ARRAY['cache']);
SELECT pgark.request_backup(repository => 'ftp://elsewhere');
SELECT pgark.request_verify(backup => '../../../etc/passwd');
SELECT pgark.request_verify(backup => '$(reboot)');
SELECT pgark.request_verify(level => 'deep');
SELECT pgark.claim_job(NULL);
SELECT pgark.finish_job(1, 'x', 'perhaps');
SELECT action, object IS NOT NULL AS object, stored FROM pgark.audit WHERE action LIKE 'request%' ORDER BY ulid LIMIT 3;
