#!/usr/bin/env bash
# Makes .venv and installs the locked dependencies and this project (editable) into it.
# Usage: scripts/install.sh. What pip says goes to .venv/install.log, shown when an install fails.
set -euo pipefail
cd "$(dirname "$0")/.."
log=.venv/install.log

# Runs `pip install` with the arguments given. Prints one short line for every 20 packages and for every large download
# (a line that rewrites itself would be lost in a CI's log).
pip_install() {
    local line wheel count=0
    PYTHONUNBUFFERED=1 .venv/bin/python -m pip install --no-input --disable-pip-version-check --progress-bar off \
        --no-deps "$@" 2>&1 | while IFS= read -r line; do
        printf '%s\n' "$line" >>"$log"
        case $line in
        Collecting\ * | Processing\ * | Ignoring\ * | "Requirement already satisfied"*)
            count=$((count + 1))
            if [ $((count % 20)) = 0 ]; then echo "  $count of $total packages"; fi
            ;;
        *Downloading\ *\([0-9][0-9][0-9]*\ MB\))
            wheel=${line##*/}
            wheel=${wheel#*Downloading }
            echo "  downloading ${wheel%%-*} (${line##*\(}"
            ;;
        "Installing collected packages"*) if [ $count -ge 20 ]; then echo "  unpacking (a minute)"; fi ;;
        esac
    done || {
        tail -n 30 "$log" >&2
        echo "error: the install failed; all of pip's output is in $log. 'make install' tries again." >&2
        exit 1
    }
}

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(scripts/find_python.sh)
    echo "Making .venv with $python (about 3 GB to download, 6 GB on disk)"
    "$python" -m venv --clear .venv
fi
.venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: .venv holds a Python older than 3.11; remove the folder and run 'make install' again" >&2
    exit 1
}
: >"$log"

total=$(grep -c '^[^ #]' requirements.lock)
echo "Installing the locked dependencies"
pip_install --require-hashes -r requirements.lock
if .venv/bin/python -c 'import sys; sys.exit(sys.version_info >= (3, 13))'; then
    echo "Building basicsr, the reference super-resolution package"
    pip_install --require-hashes --no-build-isolation -r requirements-realesrgan.lock
else
    echo "Python 3.13 or newer: left out realesrgan and basicsr (basicsr does not build there); spandrel loads the same weights"
fi
pip_install --no-build-isolation --editable .
echo "Installed. Next: make demo"
