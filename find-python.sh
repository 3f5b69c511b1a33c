#!/bin/sh
# Print the path of the newest working Python >= 3.12, or say in one sentence what to install.
#
#   ./find-python.sh              look everywhere
#   PYTHON=/some/python ./find-python.sh     prefer this one, if it is fit
#
# A name on the PATH proves nothing: pyenv's shims exist for versions that are not active and fail
# when called, and Debian's python3 may lack ensurepip. So each candidate is asked.
set -u

# Fit is: CPython with the GIL (compiled packages come for that), a final release, >= 3.12, able
# to make a virtual environment with pip and to load compiled code. The key orders by version, but
# anything newer than 3.14 comes last, since numba follows a new Python only after months.
probe='
import sys
import ctypes, ensurepip, ssl, sysconfig, venv, zlib
major, minor, micro, level = sys.version_info[:4]
fit = sys.implementation.name == "cpython" and level == "final" and (major, minor) >= (3, 12)
if not fit or sysconfig.get_config_var("Py_GIL_DISABLED"):
    sys.exit(1)
print("%d %s" % (minor * 1000 + micro if minor <= 14 else minor, sys.executable))
'

best_key=-1
best=

consider() {
    # Outer braces: the shell's own notice of a crashed candidate is not for the user either.
    { answer=$("$1" -I -c "$probe" </dev/null); } 2>/dev/null || return 0
    key=${answer%% *}
    case $key in '' | *[!0-9]*) return 0 ;; esac
    if [ "$key" -gt "$best_key" ]; then
        best_key=$key
        best=${answer#* }
    fi
}

if [ -n "${PYTHON:-}" ]; then
    consider "$PYTHON"
    if [ -n "$best" ]; then
        printf '%s\n' "$best"
        exit 0
    fi
    echo "find-python.sh: PYTHON=$PYTHON is no working Python >= 3.12, so others are tried." >&2
fi

for name in python3.14 python3.13 python3.12 python3; do
    consider "$name"
done
for path in \
    "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.1[2-9]*/bin/python3 \
    "${UV_PYTHON_INSTALL_DIR:-${XDG_DATA_HOME:-${HOME:-}/.local/share}/uv/python}"/*/bin/python3; do
    if [ -x "$path" ]; then consider "$path"; fi
done

if [ -z "$best" ]; then
    echo "find-python.sh: tunecast needs Python 3.12 or newer with venv and ensurepip, and none" \
        "was found; install one, for example with 'uv python install 3.12'," \
        "'pyenv install 3.12' or 'apt-get install python3.12-venv'." >&2
    exit 1
fi
printf '%s\n' "$best"
