#!/bin/sh
# Prints the path of a Python 3.11 or newer. Where the base image has none, the newest that its
# distribution offers is installed. With the argument `venv` it can make virtual environments, too.
set -eu

newest_first="python3.14 python3.13 python3.12 python3.11"

find_python() {
    for name in python3 $newest_first; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    return 1
}

# install NAME...: the first of these packages that there is.
install() {
    command -v apt-get >/dev/null && apt-get update >&2 || return
    for package in "$@"; do
        if apt-cache show "$package" >/dev/null 2>&1; then
            DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$package" >&2
            rm -rf /var/lib/apt/lists/* /var/cache/apt/*
            return
        fi
    done
    return 1
}

fail() {
    echo "clickhouse-clip: the base image has no $1, and none can be installed into it." >&2
    echo "It needs Python 3.11 or newer: an image of Debian or Ubuntu whose packages can be" >&2
    echo "downloaded, or a BASE_IMAGE of your own with Python in it. Alpine cannot serve the model." >&2
    exit 1
}

# shellcheck disable=SC2086  # words are meant
find_python >/dev/null || install $newest_first || fail "Python 3.11"
python=$(find_python) || fail "Python 3.11"
if [ "${1:-}" = venv ] && ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    package=$("$python" -c 'import sys; print("python{}.{}-venv".format(*sys.version_info))')
    install "$package" || fail "$package"
fi
echo "$python"
