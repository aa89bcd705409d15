#!/usr/bin/env sh
# Writes the two locks (every version and hash, for Python 3.11 and newer) from pyproject.toml. Needs `uv`.
# Versions locked already stay where they still fit; `scripts/lock.sh --upgrade` moves all to the newest.
# basicsr stands apart: its source archive can only be built where torch, numpy and cython are installed already.
set -eu
cd "$(dirname "$0")/.."
whole=$(mktemp)
trap 'rm -f "$whole"' EXIT
cat requirements.lock requirements-realesrgan.lock >"$whole"
uv pip compile pyproject.toml scripts/build-requirements.in --universal --python-version 3.11 --all-extras \
    --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet "$@" -o "$whole"
awk '/^[^ #]/ { apart = /^basicsr==/ } { print > (apart ? "requirements-realesrgan.lock" : "requirements.lock") }' "$whole"
