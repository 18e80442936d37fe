#!/bin/sh
# As the official image's: root gives the folders to clickhouse and steps down, another --user
# stays who it is; a command that is no option is run instead of the server.
set -e

if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then
    exec "$@"
fi

as_server=
if [ "$(id -u)" = 0 ]; then
    as_server="setpriv --reuid=clickhouse --regid=clickhouse --init-groups"
fi
for folder in /var/lib/clickhouse /var/lib/clickhouse/tmp /var/lib/clickhouse/user_files; do
    mkdir -p "$folder"
    if [ -n "$as_server" ] && [ "$(stat -c %U:%G "$folder")" != clickhouse:clickhouse ]; then
        chown -R clickhouse:clickhouse "$folder"
    fi
done
# shellcheck disable=SC2086  # words, or none
exec $as_server /opt/engine/bin/python3 -u /opt/engine/server.py --config-file "$CLICKHOUSE_CONFIG" "$@"
