#!/bin/sh
# Installs packages into the image's environment: from the folder $WHEELS of the build context
# alone, or, where that is empty, from the package index.
set -eu

if [ -n "$WHEELS" ]; then
    [ -d "/context/$WHEELS" ] || {
        echo "clickhouse-clip: WHEELS=$WHEELS: the build context has no such folder" >&2
        exit 1
    }
    set -- --no-index --find-links "/context/$WHEELS" "$@"
fi
exec /opt/clickhouse-clip/bin/python3 -m pip install \
    --disable-pip-version-check --no-cache-dir --root-user-action=ignore "$@"
