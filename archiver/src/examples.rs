//! The examples below each verb's `--help`. Tests parse every line that begins with `pgark`.

pub(crate) const INIT: &str = "\
Examples:
  pgark init --no-encryption
  pgark init --no-encryption --repository far
  pgark init --recovery-kit /media/stick/pgark-kit.txt";

pub(crate) const AGENT: &str = "\
Examples:
  pgark agent
  pgark agent --config /etc/pgark/pgark.toml --log-format json";

pub(crate) const CHECK: &str = "\
Examples:
  pgark check
  pgark check --no-switch --output json";

pub(crate) const INFO: &str = "\
Examples:
  pgark info
  pgark info --repository local --output json";

pub(crate) const PROMOTE: &str = "\
Examples:
  pgark promote
  pgark promote --dry-run --output json
  pgark promote --yes";

pub(crate) const ARCHIVE_PUSH: &str = "\
Examples:
  pgark archive-push pg_wal/000000010000000000000001";

pub(crate) const ARCHIVE_GET: &str = "\
Examples:
  pgark archive-get 000000010000000000000001 pg_wal/RECOVERYXLOG
  pgark archive-get 00000002.history /tmp/00000002.history";

pub(crate) const BACKUP: &str = "\
Examples:
  pgark backup
  pgark backup --plan
  pgark backup --component cache --component vectors
  pgark backup --group application --output json
  pgark backup --annotate reason=before-upgrade --parallel 2";

pub(crate) const REPO_COPY: &str = "\
Examples:
  pgark repo copy --from local --to far
  pgark repo copy --from local --to far --since 2026-11-20T00:00:00Z --output json
  pgark repo copy --from local --to far --backup 20261120T201015Z-5RJ9";

pub(crate) const REPO_LOCK: &str = "\
Examples:
  pgark repo lock
  pgark repo lock --dry-run --repository far --output json";

pub(crate) const REPO_LIFECYCLE: &str = "\
Examples:
  pgark repo lifecycle
  pgark repo lifecycle --apply --coldest standard-ia
  pgark repo lifecycle --repository far --output json";

pub(crate) const REPO_LS: &str = "\
Examples:
  pgark repo ls
  pgark repo ls components/ --repository far --output json";

pub(crate) const REPO_GET: &str = "\
Examples:
  pgark repo get wal/7564810532671234567/00000001/00000000/000000010000000000000003 --to /tmp/000000010000000000000003
  pgark repo get repository.json --to -";

pub(crate) const ASSESS: &str = "\
Examples:
  pgark assess
  pgark assess --output json";

pub(crate) const RECONCILE: &str = "\
Examples:
  pgark reconcile --component vectors
  pgark reconcile --component vectors --into-table rag.reingest";

pub(crate) const RESTORE_SET: &str = "\
Examples:
  pgark restore-set --set 20261120T201015Z-5RJ9 --target-dir /var/lib/postgresql/17/restored --dry-run
  pgark restore-set --target-time 2026-11-20T12:00:00Z --target-dir /srv/restored --yes
  pgark restore-set --target-time 2026-11-20T12:00:00Z --component cache --component vectors";

pub(crate) const RESTORE: &str = "\
Examples:
  pgark restore --target-dir /srv/restored --dry-run
  pgark restore --target-dir /srv/restored --target-time 2026-11-21T10:30:00Z
  pgark restore --target-dir /srv/standby --standby --archive keep
  pgark restore --target-dir /var/lib/postgresql/15/main --delta --archive keep
  pgark restore --target-dir /srv/restored --target-time 2024-11-21T10:30:00Z --retrieve bulk --wait-for-retrieval
  pgark restore --component documents --to /srv/look --select srv/documents/2026
  pgark restore --component documents --backup 20261121T103000Z-7K2Q --yes";

pub(crate) const VERIFY: &str = "\
Examples:
  pgark verify
  pgark verify --level pages --repository far";

pub(crate) const FIND: &str = "\
Examples:
  pgark wal find --relation public.orders --since 2026-11-21T00:00:00Z";

pub(crate) const RANGES: &str = "\
Examples:
  pgark wal ranges
  pgark wal ranges --repository far --output json";

pub(crate) const CONFLICTS: &str = "\
Examples:
  pgark wal conflicts
  pgark wal conflicts --acknowledge 000000010000000000000001 --reason looked";

pub(crate) const UPGRADE: &str = "\
Examples:
  pgark cluster upgrade
  pgark cluster upgrade --config /etc/pgark/new.toml";

pub(crate) const CONFIG_CHECK: &str = "\
Examples:
  pgark config check
  pgark config check --config /tmp/pgark.toml";

pub(crate) const COMPLETIONS: &str = "\
Examples:
  pgark completions bash";

pub(crate) const KEY_LIST: &str = "\
Examples:
  pgark key list";

pub(crate) const KEY_CHECK: &str = "\
Examples:
  pgark key check
  pgark key check --kit /media/stick/pgark-kit.txt
  pgark key check --kit -";

pub(crate) const KEY_ADD: &str = "\
Examples:
  pgark key add --name backup-host --key-file /etc/pgark/second.key
  pgark key add --name alice --recipient age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p
  pgark key add --name db1 --writer --key-file db1.key";

pub(crate) const KEY_REMOVE: &str = "\
Examples:
  pgark key remove 01KAJ3Y4X8Q2W0B7N5D6E9F1GH";

pub(crate) const KEY_ROTATE: &str = "\
Examples:
  pgark key rotate --key-file /etc/pgark/repository-2.key --recovery-kit /media/stick/pgark-kit-2.txt";

pub(crate) const KEY_EXPORT: &str = "\
Examples:
  pgark key export --paper /media/stick/pgark-kit.txt
  pgark key export --paper -";

pub(crate) const RETENTION_SET: &str = "\
Examples:
  pgark retention set --keep-last 7 --window 7d
  pgark retention set --daily 7 --weekly 5 --monthly 12 --window 14d --repository far";

pub(crate) const RETENTION_SHOW: &str = "\
Examples:
  pgark retention show";

pub(crate) const EXPIRE: &str = "\
Examples:
  pgark expire --dry-run
  pgark expire --backup 20261120T201015Z-5RJ9";

pub(crate) const UNDELETE: &str = "\
Examples:
  pgark undelete 20261120T201015Z-5RJ9";

pub(crate) const PIN: &str = "\
Examples:
  pgark pin 20261120T201015Z-5RJ9 --reason audit --until 2027-06-30T00:00:00Z";

pub(crate) const UNPIN: &str = "\
Examples:
  pgark unpin 20261120T201015Z-5RJ9";

pub(crate) const ANNOTATE: &str = "\
Examples:
  pgark annotate 20261120T201015Z-5RJ9 ticket=OPS-1234";

pub(crate) const GC: &str = "\
Examples:
  pgark gc --dry-run
  pgark gc";

pub(crate) const CATALOG_REBUILD: &str = "\
Examples:
  pgark catalog rebuild
  pgark catalog rebuild --output json";

pub(crate) const DOCTOR: &str = "\
Examples:
  pgark doctor
  pgark doctor --output json";
