#!/bin/sh
# Makes a real Elasticsearch or OpenSearch of what Maven Central has of them, outside the clone, and prints
# the path of a command that runs it: RUN CONFIG_DIR TMP_DIR [JVM_OPTION...].
#
# Elasticsearch: the distribution that its project publishes for integration tests, with its security module and
# without the optional others. OpenSearch: its server's own libraries and its HTTP transport, which need a
# descriptor and a policy that only its distribution has; they are written here.
#
# usage: search.sh [--path] elasticsearch|opensearch
#   --path  prints it (exit 1: not made yet) and makes nothing
set -eu

print_only=
if [ "${1:-}" = "--path" ]; then
    print_only=yes
    shift
fi
what=${1:-}
# The digest is that of the files' own digests: what Maven Central has under a version never changes.
case $what in
elasticsearch) version=8.19.0 digest=f8aecc4b3fd6505b2f22cae46d54435d3a323015dec0b7ff405abc2a990c9672 ;;
opensearch) version=2.19.6 digest=f22d08205fdd33da2576c6a120c28abb95cc1ee683411abde0b65ac4a3b61cae ;;
*)
    echo "usage: search.sh [--path] elasticsearch|opensearch" >&2
    exit 2
    ;;
esac
recipe=1

cache="${PGARK_CACHE:-/var/cache/pgark}"
hash=$(printf '%s|%s|%s' "$recipe" "$version" "$digest" | sha256sum | cut -c1-12)
root="$cache/$what-$hash"
shown="$root/run"

if [ -n "$print_only" ]; then
    echo "$shown"
    [ -e "$root/.pgark-ready" ]
    exit
fi
if [ -e "$root/.pgark-ready" ]; then
    echo "$shown"
    exit 0
fi
for command in mvn java python3; do
    if ! command -v "$command" >/dev/null; then
        echo "search.sh: $command is missing; as root, run: apt-get install maven openjdk-17-jre-headless python3" >&2
        exit 1
    fi
done
if ! mkdir -p "$cache" 2>/dev/null || [ ! -w "$cache" ]; then
    echo "search.sh: cannot write $cache; run: sudo PGARK_CACHE=$cache $0 $what" >&2
    exit 1
fi

# One maker at a time; a second waits and then finds it made.
exec 9>"$cache/.$what.lock"
flock 9
if [ -e "$root/.pgark-ready" ]; then
    echo "$shown"
    exit 0
fi

making="$root.making"

# Copies an artifact, and with it what it needs, to a folder. Maven's own store stays out of the home directory.
fetch() { # group artifact version type transitive folder
    cat >"$making/pom.xml" <<EOF
<project>
<modelVersion>4.0.0</modelVersion><groupId>pgark</groupId><artifactId>search</artifactId><version>1</version>
<packaging>pom</packaging>
<dependencies><dependency>
<groupId>$1</groupId><artifactId>$2</artifactId><version>$3</version><type>$4</type>
</dependency></dependencies>
</project>
EOF
    mvn -q -B -f "$making/pom.xml" -Dmaven.repo.local="$making/m2" dependency:copy-dependencies \
        -DexcludeTransitive="$5" -DoutputDirectory="$6"
}

{
    # What an interrupted run left is thrown away.
    rm -rf "$root" "$making"
    mkdir -p "$making/files"
    case $what in
    elasticsearch)
        fetch org.elasticsearch.distribution.integ-test-zip elasticsearch "$version" zip true "$making/files"
        ;;
    opensearch)
        fetch org.opensearch opensearch "$version" jar false "$making/files/lib"
        fetch org.opensearch opensearch-plugin-classloader "$version" jar true "$making/files/lib"
        log4j=$(basename "$making"/files/lib/log4j-api-*.jar .jar)
        fetch org.apache.logging.log4j log4j-core "${log4j#log4j-api-}" jar true "$making/files/lib"
        fetch org.opensearch.plugin transport-netty4-client "$version" jar false "$making/files/modules/transport-netty4"
        ;;
    esac
    found=$(cd "$making/files" && find . -type f | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -d' ' -f1)
    if [ "$found" != "$digest" ]; then
        echo "search.sh: the files of $what $version have the digest $found, not $digest" >&2
        exit 1
    fi
    case $what in
    elasticsearch)
        python3 -m zipfile -e "$making/files/elasticsearch-$version.zip" "$making"
        mv "$making/elasticsearch-$version" "$making/home"
        chmod 755 "$making"/home/bin/*
        cat >"$making/run" <<'EOF'
#!/bin/sh
# usage: run CONFIG_DIR TMP_DIR [JVM_OPTION...]
root=$(dirname "$(readlink -f "$0")")
config=$1
tmp=$2
shift 2
ES_JAVA_HOME=$(dirname "$(dirname "$(readlink -f "$(command -v java)")")")
cp "$root/home/config/log4j2.properties" "$config/"
{
    printf '%s\n' -XX:+UseSerialGC -XX:TieredStopAtLevel=1 "-Djava.io.tmpdir=$tmp"
    printf '%s\n' "$@"
} >"$config/jvm.options"
export ES_JAVA_HOME ES_PATH_CONF="$config" ES_TMPDIR="$tmp" HOME="$tmp"
export CLI_JAVA_OPTS="-Xmx64m -XX:+UseSerialGC -XX:TieredStopAtLevel=1"
exec "$root/home/bin/elasticsearch"
EOF
        ;;
    opensearch)
        mkdir -p "$making/home/bin" "$making/home/plugins" "$making/home/extensions"
        mv "$making/files/lib" "$making/files/modules" "$making/home/"
        cat >"$making/home/modules/transport-netty4/plugin-descriptor.properties" <<EOF
name=transport-netty4
description=HTTP and transport over Netty
version=$version
opensearch.version=$version
java.version=11
classname=org.opensearch.transport.Netty4Plugin
extended.plugins=
has.native.controller=false
custom.foldername=
EOF
        cat >"$making/home/modules/transport-netty4/plugin-security.policy" <<'EOF'
grant {
    permission java.net.SocketPermission "*", "accept,connect,resolve";
    permission java.net.NetPermission "getProxySelector";
    permission java.lang.RuntimePermission "getClassLoader";
    permission java.lang.RuntimePermission "setContextClassLoader";
    permission java.lang.RuntimePermission "accessDeclaredMembers";
    permission java.lang.RuntimePermission "accessClassInPackage.sun.nio.ch";
    permission java.lang.reflect.ReflectPermission "suppressAccessChecks";
    permission java.util.PropertyPermission "*", "read,write";
};
EOF
        cat >"$making/run" <<'EOF'
#!/bin/sh
# usage: run CONFIG_DIR TMP_DIR [JVM_OPTION...]
root=$(dirname "$(readlink -f "$0")")
config=$1
tmp=$2
shift 2
cat >"$config/log4j2.properties" <<'LOG'
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = [%d{ISO8601}][%-5p][%-25c{1.}] %m%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
LOG
export HOME="$tmp"
exec java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 "-Djava.io.tmpdir=$tmp" -Djava.security.manager=allow \
    -Dopensearch.path.home="$root/home" -Dopensearch.path.conf="$config" -Dopensearch.distribution.type=tar \
    -Dopensearch.bundled_jdk=false -Dfile.encoding=UTF-8 -Djava.locale.providers=SPI,COMPAT --add-modules=jdk.net \
    -Dio.netty.noUnsafe=true -Dio.netty.noKeySetOptimization=true -Dio.netty.recycler.maxCapacityPerThread=0 \
    -Dlog4j.shutdownHookEnabled=false -Dlog4j2.disable.jmx=true "$@" \
    -cp "$root/home/lib/*" org.opensearch.bootstrap.OpenSearch
EOF
        ;;
    esac
    chmod 755 "$making/run"
    rm -rf "$making/m2" "$making/pom.xml" "$making/files"
    chmod -R go+rX "$making"
    touch "$making/.pgark-ready"
    mv -T "$making" "$root"
} >&2
echo "$shown"
