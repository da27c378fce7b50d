#!/bin/sh
# Installs what the demo, the tests and the bench need on Debian 12: through apt when run as root;
# otherwise it lists what is missing and fails. Running it again changes nothing.
#
# usage: install.sh [demo|stack|test|conformance|bench]     default: test
set -eu

want=${1:-test}

# libc6-dev by name: gcc only recommends it, and nothing links without it.
packages="postgresql-15 gcc libc6-dev"
case $want in
demo) ;;
stack) packages="$packages python3-venv" ;;
test)
    packages="$packages postgresql-server-dev-15 libclang-14-dev binutils debootstrap"
    packages="$packages postgresql-15-cron python3-venv python3-zstandard python3-cryptography python3-argon2 openssl openssh-server openssh-client"
    packages="$packages maven openjdk-17-jre-headless"
    ;;
conformance) packages="$packages debootstrap python3-venv openssh-server openssh-client" ;;
bench)
    packages="$packages postgresql-server-dev-15 libclang-14-dev binutils pgbackrest restic"
    packages="$packages debootstrap python3-venv openssl"
    ;;
*)
    echo "usage: install.sh [demo|stack|test|conformance|bench]" >&2
    exit 2
    ;;
esac

if ! command -v cargo >/dev/null; then
    echo "install.sh: cargo is missing: install Rust, https://rustup.rs" >&2
    exit 1
fi
if ! command -v dpkg-query >/dev/null; then
    echo "install.sh: this is not Debian; needed are, under Debian 12's names: $packages" >&2
    exit 1
fi

missing=
for package in $packages; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    if [ "$state" != installed ]; then missing="$missing $package"; fi
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "install.sh: missing packages; as root, run: apt-get install$missing" >&2
        exit 1
    fi
    # Before Postgres comes: its package would make a cluster and start it. A setting that the
    # administrator made stays.
    conf=/etc/postgresql-common/createcluster.conf
    mkdir -p "$(dirname "$conf")"
    if ! grep -qs '^[[:space:]]*create_main_cluster' "$conf"; then
        echo 'create_main_cluster = false' >>"$conf"
    fi
    # Nor is a server for SSH to be started, now or at the next boot: tests run their own.
    case $missing in
    *openssh-server*)
        mkdir -p /etc/ssh
        touch /etc/ssh/sshd_not_to_be_run
        ;;
    esac
    export DEBIAN_FRONTEND=noninteractive
    {
        apt-get update
        # shellcheck disable=SC2086
        apt-get install -y --no-install-recommends -o Dpkg::Options::=--force-confold $missing
    } >&2
fi

if [ "$want" = stack ]; then
    "$(dirname "$0")/stores.sh" redis >/dev/null
    "$(dirname "$0")/chroma.sh" >/dev/null
fi
if [ "$want" = test ]; then
    "$(dirname "$0")/chroot.sh" >/dev/null
    "$(dirname "$0")/python.sh" >/dev/null
    "$(dirname "$0")/s3-servers.sh" moto >/dev/null
    "$(dirname "$0")/chroma.sh" >/dev/null
    "$(dirname "$0")/qdrant-edge.sh" >/dev/null
    "$(dirname "$0")/docker.sh" >/dev/null
    "$(dirname "$0")/minio-client.sh" >/dev/null
    for store in redis redis-8 valkey prometheus; do
        "$(dirname "$0")/stores.sh" "$store" >/dev/null
    done
    for store in elasticsearch opensearch; do
        "$(dirname "$0")/search.sh" "$store" >/dev/null
    done
fi
if [ "$want" = conformance ] || [ "$want" = bench ]; then
    "$(dirname "$0")/s3-servers.sh" moto >/dev/null
    "$(dirname "$0")/s3-servers.sh" radosgw >/dev/null
fi
