-- Retention and recovery, from a catalog that the test fills.
\set SHOW_CONTEXT never

INSERT INTO pgark.catalog_repository (name, kind, required, state, checked_at) VALUES ('local', 'posix', true, 'ok', '2030-01-10 00:00+00');
INSERT INTO pgark.catalog_component (name, kind, stage, node) VALUES ('main', 'postgres', 'cluster', 'here'), ('cache', 'redis', 'derived', 'here'), ('documents', 'files', 'blob', 'here');
SELECT pgark.restore_plan();
SELECT system_identifier AS sysid FROM pgark.identity() \gset
INSERT INTO pgark.catalog_cluster VALUES ('local', 'main', :sysid, 16777216, true);
INSERT INTO pgark.catalog_timeline VALUES ('local', :sysid, 1, '[]', '2020-01-09 12:00+00', '2020-01-09 11:59+00', '0/9000000');
INSERT INTO pgark.catalog_wal_range VALUES ('local', :sysid, 1, '000000010000000000000001', '000000010000000000000004', 4, '000000010000000000000006'),
    ('local', :sysid, 1, '000000010000000000000006', '000000010000000000000009', 4, NULL);
INSERT INTO pgark.catalog_backup (component, label, repository, kind, state, started_at, stopped_at, system_identifier, timeline, start_lsn, stop_lsn, bytes_source, bytes_stored)
VALUES ('main', '20200101T000000Z-AAAA', 'local', 'postgres', 'live', '2020-01-01 00:00+00', '2020-01-01 00:10+00', :sysid, 1, '0/2000028', '0/2000100', 1000, 400),
    ('main', '20200105T000000Z-BBBB', 'local', 'postgres', 'live', '2020-01-05 00:00+00', '2020-01-05 00:10+00', :sysid, 1, '0/6000028', '0/6000100', 1100, 410),
    ('main', '20200108T000000Z-CCCC', 'local', 'postgres', 'live', '2020-01-08 00:00+00', '2020-01-08 00:10+00', :sysid, 1, '0/8000028', '0/8000100', 1200, 420);
INSERT INTO pgark.catalog_backup (component, label, repository, kind, state, started_at, stopped_at, bytes_source, bytes_stored)
VALUES ('cache', '20200104T000000Z-DDDD', 'local', 'redis', 'live', '2020-01-04 00:00+00', '2020-01-04 00:01+00', 50, 20),
    ('cache', '20200109T000000Z-EEEE', 'local', 'redis', 'live', '2020-01-09 00:00+00', '2020-01-09 00:01+00', 50, 20),
    ('documents', '20200104T000000Z-FFFF', 'local', 'files', 'live', '2020-01-04 00:00+00', '2020-01-04 00:02+00', 500, 200),
    ('documents', '20200109T000000Z-GGGG', 'local', 'files', 'live', '2020-01-09 00:00+00', '2020-01-09 00:02+00', 500, 200);
INSERT INTO pgark.catalog_recovery_window VALUES ('local', 'main', :sysid, 1, '2020-01-01 00:10+00', '2020-01-09 11:59+00', '0/2000100', '0/9000000');
SET timezone = 'UTC';

SELECT first_wal, last_wal, segments, next_first_wal FROM pgark.wal_range ORDER BY first_wal;
SELECT name, newest_backup, newest_backup_at FROM pgark.component ORDER BY name;

SELECT archived_count, repository, component, last_stored_wal, last_stored_time, covered_until FROM pgark.stat_archiver;
SELECT name, oldest_restorable_time, newest_restorable_time FROM pgark.stat_repository;
-- The newest moment; a moment between; one in the gap.
SELECT component, backup, timeline, first_wal, last_wal, segments, missing_wal, complete, note FROM pgark.restore_plan();
SELECT component, backup, first_wal, last_wal, missing_wal, bytes, complete, note FROM pgark.restore_plan('2020-01-06 12:00+00');
SELECT component, backup, lsn, first_wal, last_wal, segments, complete FROM pgark.restore_plan(target_lsn => '0/7000000');
SELECT component, backup, missing_wal, complete, note FROM pgark.restore_plan(target_lsn => '0/5800000') WHERE kind = 'postgres';
SELECT component, backup, complete, note FROM pgark.restore_plan('2020-01-09 18:00+00') WHERE kind = 'postgres';
-- A timeline without a sample of the clock of its own: the window counts; and without that, nothing is promised.
BEGIN;
UPDATE pgark.catalog_timeline SET covered_until = NULL;
SELECT complete, note FROM pgark.restore_plan('2020-01-09 11:59+00') WHERE kind = 'postgres';
SELECT complete, note FROM pgark.restore_plan('2020-01-09 12:00+00') WHERE kind = 'postgres';
UPDATE pgark.catalog_recovery_window SET to_time = NULL;
SELECT complete, note FROM pgark.restore_plan('2020-01-09 11:59+00') WHERE kind = 'postgres';
SELECT pgark.restore_command('2020-01-09 11:59+00');
ROLLBACK;
-- A timeline of which the history file alone is stored: its parent counts, as for the binary, until its first segment is there.
BEGIN;
INSERT INTO pgark.catalog_timeline VALUES ('local', :sysid, 2, '[{"timeline": 1, "switch": "0/8800000"}]');
SELECT timeline, last_wal, complete FROM pgark.restore_plan(target_lsn => '0/8900000') WHERE kind = 'postgres';
INSERT INTO pgark.catalog_wal_range VALUES ('local', :sysid, 2, '000000020000000000000008', '000000020000000000000008', 1, NULL);
SELECT timeline, last_wal, complete FROM pgark.restore_plan(target_lsn => '0/8900000') WHERE kind = 'postgres';
ROLLBACK;
SELECT pgark.restore_command('2020-01-06 12:00+00');
SELECT pgark.restore_command(target_lsn => '0/7000000', target_dir => '/srv/it''s $(here); rm -rf /', repository => 'local');
SELECT pgark.restore_command();
SELECT pgark.restore_command(backup => '20200101T000000Z-AAAA');
SELECT pgark.restore_command(backup => '20200104T000000Z-DDDD');
SELECT pgark.restore_command('2020-01-06 12:00+00', backup => '20200101T000000Z-AAAA');

-- Restore points. The same name twice: which one?
SELECT pgark.mark('before the migration') > '0/0' AS marked;
UPDATE pgark.catalog_restore_point SET lsn = '0/8800000', marked_at = '2020-01-09 06:00+00';
SELECT name, marked_at, lsn, timeline FROM pgark.restore_point;
SELECT component, backup, lsn, complete FROM pgark.restore_plan(target_name => 'before the migration') WHERE kind = 'postgres';
SELECT pgark.restore_command(target_name => 'before the migration');
SELECT pgark.mark('before the migration') > '0/0' AS marked;
SELECT pgark.restore_plan(target_name => 'before the migration');
SELECT pgark.mark('$(reboot)') > '0/0' AS marked;
UPDATE pgark.catalog_restore_point SET lsn = '0/8900000' WHERE name = '$(reboot)';
SELECT pgark.restore_command(target_name => '$(reboot)');

-- What a restore replaced, kept before it: never chosen unless it is named, and no reason to remove another one.
BEGIN;
INSERT INTO pgark.catalog_backup (component, label, repository, kind, state, started_at, stopped_at, bytes_source, bytes_stored, safety)
VALUES ('cache', '20200109T060000Z-HHHH', 'local', 'redis', 'live', '2020-01-09 06:00+00', '2020-01-09 06:01+00', 50, 20, true);
SELECT backup FROM pgark.restore_plan() WHERE component = 'cache';
SELECT newest_backup FROM pgark.component WHERE name = 'cache';
SELECT label, safety FROM pgark.backup WHERE component = 'cache' ORDER BY label;
SELECT first, keep, reasons FROM pgark.preview_expire('cache', '{"keep_last": 1}') WHERE object = 'backup';
ROLLBACK;

-- What is refused.
SELECT pgark.restore_plan('2019-12-31 00:00+00');
SELECT pgark.restore_plan('infinity');
SELECT pgark.restore_plan('-infinity');
SELECT pgark.restore_command('4713-01-01 BC');
SELECT pgark.restore_plan('2999-01-01');
SELECT pgark.restore_plan(target_lsn => '0/FF000000');
SELECT pgark.restore_plan('2020-01-06 12:00+00', '0/7000000');
SELECT pgark.restore_plan(target_name => 'no such point');
SELECT pgark.restore_plan(repository => 'elsewhere');
SELECT pgark.restore_command('2020-01-09 18:00+00');
SELECT pgark.restore_command(target_dir => 'relative');
SELECT pgark.restore_command(target_dir => '/' || repeat('x', 4096));
SELECT pgark.restore_command(target_dir => E'/x\n reboot');
SELECT pgark.mark('');
SELECT pgark.mark(NULL);
SELECT pgark.mark(repeat('x', 64));
SELECT pgark.mark('pgark:mine');

-- Retention: previewed with a policy of one's own, then with the one that is set.
SELECT component_name, object, first, last, keep, reasons FROM pgark.preview_expire('main', '{"keep_last": 1}');
SELECT component_name, object, first, keep, reasons FROM pgark.preview_expire(policy => '{"keep_last": 1, "window": "1d"}') WHERE object = 'backup' AND NOT keep;
SELECT pgark.set_retention('main', '{"keep_last": 2, "window": "7d"}');
SELECT pgark.set_retention('main', '{"daily": 30}', 'local');
SELECT component, repository, policy, pending, effective FROM pgark.retention ORDER BY repository NULLS FIRST;
SELECT bool_and(keep) AS all_kept, min(reasons) FROM pgark.preview_expire('main') WHERE object = 'backup';
UPDATE pgark.catalog_backup SET pin_reason = 'audit' WHERE label = '20200101T000000Z-AAAA';
SELECT first, keep, reasons FROM pgark.preview_expire('main', '{"keep_last": 1}') WHERE object = 'backup';
SELECT pgark.preview_expire('nobody');
SELECT pgark.preview_expire('main', '{"keep_last": 0}');
SELECT pgark.preview_expire('main', '{"keep_lats": 1}');
SELECT pgark.set_retention('main', '{"keep_last": -1}');
SELECT pgark.set_retention('main', '{"window": "1 fortnight"}');
SELECT pgark.set_retention('main', NULL);
SELECT pgark.set_retention('main', '[7]');
SELECT pgark.preview_expire('main', '[]');
SELECT pgark.set_retention(NULL, '{}');
SELECT pgark.set_retention('nobody', '{}');
SELECT pgark.set_retention('main', '{}', 'elsewhere');
SELECT pgark.set_component('main', interval '1 day');
SELECT name, ok, detail, hint FROM pgark.health() WHERE name LIKE 'backup of%' OR name IN ('wal', 'repository local', 'alerts', 'agent', 'preload');
SELECT pgark.set_component('main', interval '-1 day');
SELECT pgark.set_component('main', interval '100000000 years');
SELECT pgark.set_component('main', interval '100 years');
SELECT ok FROM pgark.health() WHERE name = 'backup of main';
SELECT pgark.set_component('main', NULL);
SELECT name, ok, hint FROM pgark.doctor() WHERE name IN ('archive_mode', 'roles', 'data_checksums');
