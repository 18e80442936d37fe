#!/bin/sh
# The tables on the whole cluster, the searches on each node.
set -eu

run() {
    clickhouse-client --host "$1" --user "$CLICKHOUSE_USER" --password "$CLICKHOUSE_PASSWORD" \
        --param_dimensions="$DIMENSIONS" --queries-file "/sql/$2"
}

run "${NODES%% *}" cluster/schema.sql
for node in $NODES; do
    run "$node" search.sql
done
