#!/bin/sh
# Runs Ceph's radosgw, with one monitor and one OSD in memory, in the foreground, on loopback, in the
# chroot that s3-servers.sh made. Everything ends with this process: it runs in a PID and a mount
# namespace of its own. Prints "ready" when it answers.
#
# usage: radosgw.sh FOLDER PORT MONITOR_PORT ACCESS_KEY SECRET_KEY [READER_KEY READER_SECRET]
# (MONITOR_PORT + 1 is used too; the reader is a user without rights)
set -eu

folder=$1 port=$2 monitor=$3 access=$4 secret=$5 reader=${6:-READER} reader_secret=${7:-reader-secret}
root=$("$(dirname "$0")/s3-servers.sh" --path radosgw)
mkdir -p "$folder"
# --kill-child: the namespace's first process, and with it all others, dies with unshare.
exec unshare --mount --pid --fork --kill-child /bin/sh -s "$root" "$folder" "$port" "$monitor" "$access" "$secret" "$reader" "$reader_secret" <<'SCRIPT'
set -eu
root=$1 folder=$2 port=$3 monitor=$4 access=$5 secret=$6 reader=$7 reader_secret=$8
mount --make-rprivate /
mount -t proc proc "$root/proc"
mount --bind "$folder" "$root/mnt"
mount -t tmpfs tmpfs "$root/run"
mkdir -p "$root/mnt/mon" "$root/mnt/osd" "$root/mnt/log"
mount --rbind /dev "$root/dev"
fsid=$(cat /proc/sys/kernel/random/uuid)
osd=$(cat /proc/sys/kernel/random/uuid)
cat >"$root/mnt/ceph.conf" <<CONF
[global]
fsid = $fsid
mon_host = [v2:127.0.0.1:$monitor,v1:127.0.0.1:$((monitor + 1))]
public_addr = 127.0.0.1
keyring = /mnt/keyring
run_dir = /mnt
admin_socket = /mnt/\$name.asok
log_file = /mnt/log/\$name.log
mon_data = /mnt/mon
osd_data = /mnt/osd
osd_objectstore = memstore
memstore_device_bytes = 6442450944
osd_pool_default_size = 1
osd_pool_default_min_size = 1
mon_allow_pool_size_one = true
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
mon_data_avail_crit = 1
mon_data_avail_warn = 1
osd_crush_chooseleaf_type = 0
rgw_enable_usage_log = false
rgw_thread_pool_size = 32
# Customers' keys over plain HTTP: loopback alone.
rgw_crypt_require_ssl = false
CONF
run() { chroot "$root" env LC_ALL=C CEPH_CONF=/mnt/ceph.conf "$@"; }
{
    run ceph-authtool --create-keyring /mnt/keyring --gen-key -n mon. --cap mon 'allow *'
    run ceph-authtool /mnt/keyring --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
    run ceph-authtool /mnt/keyring --gen-key -n osd.0 --cap mon 'allow profile osd' --cap osd 'allow *'
    run ceph-authtool /mnt/keyring --gen-key -n client.rgw.b --cap mon 'allow rw' --cap osd 'allow rwx'
    run monmaptool --create --fsid "$fsid" \
        --addv a "[v2:127.0.0.1:$monitor,v1:127.0.0.1:$((monitor + 1))]" /mnt/monmap
    run ceph-mon --mkfs -i a --monmap /mnt/monmap --keyring /mnt/keyring
    run ceph-mon -i a
    run ceph --connect-timeout 20 osd new "$osd"
    run ceph --connect-timeout 20 auth import -i /mnt/keyring
    run ceph-osd -i 0 --mkfs --osd-uuid "$osd"
    run ceph-osd -i 0
    run radosgw-admin user create --uid test --display-name test --access-key "$access" --secret-key "$secret"
    run radosgw-admin user create --uid reader --display-name reader --access-key "$reader" --secret-key "$reader_secret"
} >"$folder/setup.log" 2>&1 </dev/null
# With a certificate and its key in the folder it speaks TLS.
endpoint="endpoint=127.0.0.1:$port"
if [ -e "$folder/tls.pem" ]; then
    endpoint="ssl_endpoint=127.0.0.1:$port ssl_certificate=/mnt/tls.pem"
fi
# Without it every small answer on a connection that is kept waits 40 ms for the client's delayed ACK.
endpoint="$endpoint tcp_nodelay=1"
run radosgw -n client.rgw.b -d --rgw-frontends="beast $endpoint" >"$folder/radosgw.log" 2>&1 </dev/null &
gateway=$!
for _ in $(seq 300); do
    if grep -qs "starting handler: beast" "$folder/radosgw.log"; then break; fi
    kill -0 "$gateway"
    sleep 0.2
done
echo ready
wait "$gateway"
SCRIPT
