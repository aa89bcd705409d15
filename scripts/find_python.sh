#!/usr/bin/env bash
# Prints the path of a Python >= 3.11 that can make virtual environments: $PYTHON if set, else the first that works.
# Each is tried by running it, since a name on the PATH may be a version manager's shim with nothing behind it.
set -euo pipefail

check='
import sys
if sys.version_info < (3, 11):
    sys.exit(3)
try:
    import ensurepip, venv
except ImportError:
    sys.exit(4)
print(sys.executable)
'
without_venv=""
if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3.12 python3.11 python3.13 python3; fi
for name; do
    code=0
    found=$("$name" -c "$check" 2>/dev/null) || code=$?
    if [ "$code" = 0 ] && [ -n "$found" ]; then
        echo "$found"
        exit 0
    fi
    if [ "$code" = 4 ]; then
        without_venv=$name
    fi
done

if [ -n "$without_venv" ]; then
    echo "error: $without_venv cannot make virtual environments (Debian, Ubuntu: apt-get install python3-venv)" >&2
elif [ -n "${PYTHON:-}" ]; then
    echo "error: PYTHON=$PYTHON is no working Python 3.11 or newer" >&2
else
    echo "error: no working Python 3.11 or newer on the PATH; install one, or name it: make install PYTHON=/path/to/python3" >&2
fi
exit 1
