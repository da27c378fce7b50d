-- Schedules: made, pending, in effect, due, missed, overlapping, removed.
\set SHOW_CONTEXT never

SELECT pgark.schedule('nightly', '0 2 * * *', 'backup') > 0 AS made;
SELECT pgark.schedule('often', interval '6 hours', 'backup', options => '{"missed": "skip", "attempts_max": 1, "annotations": {"why": "$(rm -rf /)"}}') > 0 AS made;
SELECT pgark.schedule('sweep', '45 3 * * 7', 'gc', options => '{"time_zone": "Europe/Berlin"}') > 0 AS made;
SELECT name, cron, every, time_zone, action, components, options, missed, attempts_max, pending, in_effect, next_due_at IS NULL AS not_due FROM pgark.schedule ORDER BY name;
-- Nothing is due before the agent has put it into the repository.
SELECT pgark.tick_at('2100-01-01', 'tick');
SELECT ok, detail ~ '^3 changes .* are pending' AS pending FROM pgark.health() WHERE name = 'policy';
SELECT version, document -> 'schedules' -> 0 AS first, jsonb_array_length(document -> 'schedules') AS n, document -> 'retention' AS retention, reference FROM pgark.policy_to_store();
SELECT pgark.policy_stored(2, '{"main": 1}');
SELECT name, pending, in_effect FROM pgark.schedule ORDER BY name;
SELECT pgark.policy_stored(3, '{"main": 2}');
SELECT name, pending, in_effect, next_due_at > now() AS comes FROM pgark.schedule ORDER BY name;
SELECT count(*) AS nothing_to_store FROM pgark.policy_to_store();
SELECT name, ok, detail FROM pgark.health() WHERE name = 'policy';

-- From here on at instants of the test's own choosing.
UPDATE pgark.config_schedule SET effective_at = '2030-01-01 00:00+00';
UPDATE pgark.config_schedule SET effective = jsonb_set(effective, '{anchor}', '"2030-01-01T00:00:00Z"') WHERE name = 'often';
SELECT pgark.tick_at('2030-01-01 01:59:59+00', 'tick');
SELECT pgark.tick_at('2030-01-01 02:00:00+00', 'pg_cron');
SELECT pgark.tick_at('2030-01-01 02:00:00+00', 'worker') AS not_twice;
SELECT pgark.tick_at('2030-01-01 02:00:20+00', 'agent') AS not_twice;
SELECT schedule, due_at AT TIME ZONE 'UTC' AS due, outcome, job_id IS NOT NULL AS job, source FROM pgark.queue_occurrence ORDER BY 1, 2;
SELECT action, state, schedule, due_at AT TIME ZONE 'UTC' AS due, attempts_max, requested_by FROM pgark.job ORDER BY id;
-- The job is not done: the next one does not start beside it.
SELECT pgark.tick_at('2030-01-02 02:00:30+00', 'tick');
-- A week of nobody: nightly runs once, often (missed = skip) not at all.
UPDATE pgark.queue_job SET state = 'canceled', finished_at = now();
SELECT pgark.tick_at('2030-01-09 05:00:00+00', 'tick');
SELECT schedule, due_at AT TIME ZONE 'UTC' AS due, outcome, job_id IS NOT NULL AS job, source FROM pgark.queue_occurrence ORDER BY 1, 2;
-- What ran elsewhere is not run again.
SELECT pgark.record_occurrence('nightly', '2030-01-10 02:00+00'), pgark.record_occurrence('nightly', '2030-01-10 02:00+00');
UPDATE pgark.queue_job SET state = 'canceled', finished_at = now() WHERE finished_at IS NULL;
SELECT pgark.tick_at('2030-01-10 02:00:30+00', 'tick');
SELECT last_due_at AT TIME ZONE 'UTC' AS due, last_outcome, last_source FROM pgark.schedule WHERE name = 'nightly';

-- One that the library does not understand stops no other one.
BEGIN;
UPDATE pgark.config_schedule SET effective = '{"name": "nightly", "cron": "0 2 * * *", "action": "from the future"}' WHERE name = 'nightly';
SELECT pgark.tick_at('2030-01-14 05:00:00+00', 'tick');
SELECT name, next_due_at IS NULL AS unknown FROM pgark.schedule ORDER BY name;
ROLLBACK;

-- A change keeps what holds until it is stored; so does a removal.
SELECT pgark.schedule('nightly', '0 4 * * *', 'backup') = (SELECT id FROM pgark.schedule WHERE name = 'nightly') AS same;
SELECT pgark.unschedule('sweep');
SELECT name, cron, effective ->> 'cron' AS holds, pending, dropped FROM pgark.schedule ORDER BY name;
SELECT version, jsonb_path_query_array(document, '$.schedules[*].name') AS names FROM pgark.policy_to_store();
SELECT pgark.policy_stored(5, '{"main": 3}');
SELECT name, cron, effective ->> 'cron' AS holds, pending FROM pgark.schedule ORDER BY name;
SELECT pgark.unschedule('sweep');

-- The repository's policy: a stranger's change comes in, one of our own that is pending stays ...
SELECT pgark.schedule('mine', '1 1 * * *', 'verify') > 0 AS made;
SELECT pgark.policy_import('{"format": 1, "schedules": [{"name": "nightly", "cron": "0 5 * * *", "action": "backup"}, {"name": "theirs", "cron": "0 6 * * *", "action": "expire"}], "retention": []}', '{"main": 4}', false);
SELECT name, cron, effective ->> 'cron' AS holds, pending FROM pgark.schedule ORDER BY name;
-- ... and goes when the tables were rewound.
SELECT pgark.policy_import('{"format": 1, "schedules": [{"name": "nightly", "cron": "0 5 * * *", "action": "backup"}], "retention": [{"component": "main", "repository": null, "policy": {"keep_last": 90}}]}', '{"main": 5}', true);
SELECT name, cron, effective ->> 'cron' AS holds, pending FROM pgark.schedule ORDER BY name;
SELECT component, policy, effective, pending FROM pgark.retention;
SELECT count(*) AS nothing_to_store FROM pgark.policy_to_store();
SELECT pgark.policy_import('{"format": 2}', NULL, false);
SELECT pgark.policy_import('{"format": 1, "schedules": [{"name": "x", "cron": "0 5 * * *", "action": "backup", "command": "id"}], "retention": []}', NULL, false);

-- Summer time: see archiver/types/tests/schedules.rs for the rules.
SELECT pgark.schedule_next('{"name": "n", "cron": "30 2 * * *", "action": "backup", "time_zone": "Europe/Berlin"}', '2026-03-28 12:00+00') AT TIME ZONE 'UTC' AS skipped_hour;
SELECT pgark.schedule_due('{"name": "n", "cron": "30 2 * * *", "action": "backup", "time_zone": "Europe/Berlin"}', '2026-10-25 00:30+00', '2026-10-25 12:00+00') AS repeated_hour;

-- What is refused.
SELECT pgark.schedule('bad', '61 * * * *', 'backup');
SELECT pgark.schedule('bad', '0 2 * *', 'backup');
SELECT pgark.schedule('bad', '0 0 30 2 *', 'backup');
SELECT pgark.schedule('bad', '* * * * *', 'format_disk');
SELECT pgark.schedule('Bad Name', '* * * * *', 'backup');
SELECT pgark.schedule('../../etc/passwd', '* * * * *', 'backup');
SELECT pgark.schedule('x''; DROP TABLE pgark.queue_job; --', '* * * * *', 'backup');
SELECT pgark.schedule(NULL, '* * * * *', 'backup');
SELECT pgark.schedule('bad', NULL::text, 'backup');
SELECT pgark.schedule('bad', '* * * * *', 'backup', ARRAY['nobody']);
SELECT pgark.schedule('bad', '* * * * *', 'backup', ARRAY[]::text[]);
SELECT pgark.schedule('bad', '* * * * *', 'backup', options => '{"path": "/etc/passwd"}');
SELECT pgark.schedule('bad', '* * * * *', 'backup', options => '{"time_zone": "Mars/Base"}');
SELECT pgark.schedule('bad', '* * * * *', 'backup', options => '{"missed": "maybe"}');
SELECT pgark.schedule('bad', '* * * * *', 'backup', options => '[1]');
SELECT pgark.schedule('bad', interval '-1 hour', 'backup');
SELECT pgark.schedule('bad', interval '30 seconds', 'backup');
SELECT pgark.schedule('bad', interval '1 month', 'backup');
SELECT pgark.tick('somebody');

-- At most 1000: what is to go does not count, and what is there can be changed.
BEGIN;
SELECT count(pgark.schedule('s' || i, '0 0 1 1 *', 'gc')) AS made FROM generate_series(1, 1000 - (SELECT count(*)::integer FROM pgark.config_schedule WHERE NOT dropped)) AS i;
SAVEPOINT before;
SELECT pgark.schedule('one-more', '0 0 1 1 *', 'gc');
ROLLBACK TO before;
SELECT pgark.schedule('s1', '0 0 2 1 *', 'gc') > 0 AS changed;
SELECT pgark.unschedule('s2');
SELECT pgark.schedule('one-more', '0 0 1 1 *', 'gc') > 0 AS made;
ROLLBACK;
