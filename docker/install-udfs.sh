#!/bin/sh
# Puts the functions into the image that is being built.
set -eu

# With --root, no server is asked that happens to listen where this is built.
/opt/clickhouse-clip/bin/install-udfs --root / --bundle /opt/clickhouse-clip/bundle --warmup
# The folder in the volume belongs to whoever the server runs as, and is made by him.
rm -rf /var/lib/clickhouse/clickhouse-clip
