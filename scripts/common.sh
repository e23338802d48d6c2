# Shared by scripts/demo, scripts/docs and scripts/test, which source it: functions to install
# programs of the distribution and to make an environment.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

say() { printf '==> %s\n' "$*"; }

die() {
    printf '\n%s: %s\n' "${0##*/}" "$1" >&2
    shift
    for line in "$@"; do printf '    %s\n' "$line" >&2; done
    exit 1
}

# suits PYTHON: whether it is Python 3.11 or newer with the modules for virtual environments.
suits() {
    "$1" -I -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Sets PYTHON to a suitable interpreter, or to "" if there is none. A given PYTHON must be suitable.
find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        suits "$PYTHON" || die "PYTHON is $PYTHON, which is not Python 3.11 or newer with venv"
        return
    fi
    for candidate in python3 /usr/bin/python3 python3.14 python3.13 python3.12 python3.11; do
        if suits "$candidate"; then
            PYTHON="$(command -v "$candidate")"
            return
        fi
    done
    PYTHON=""
}

# missing_packages PROGRAM=PACKAGE…: prints the packages of missing programs, one per line.
missing_packages() {
    local pair
    for pair in "$@"; do
        PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%=*}" >/dev/null 2>&1 || echo "${pair#*=}"
    done
}

# check_place: ends if the clone lies where a sandbox has something of its own (OWN_PLACES in
# gvisor_kernel/runtimes/mounts/plan.py): no kernel could start from there.
check_place() {
    local path place
    local own=(/workspace /mnt/user-data /mnt/skills /mnt/transcripts /run/gvisor-kernel)
    own+=(/opt/gvisor-kernel)
    for path in "$ROOT" "$(cd "$ROOT" && pwd -P)"; do
        for place in "${own[@]}"; do
            case "$path/" in
                "$place"/*)
                    die "this clone is $path, but inside a sandbox $place belongs to the sandbox" \
                        "Move the clone to another folder, and run ${0##*/} there."
                    ;;
            esac
        done
    done
}

# need_packages PACKAGE…: installs them as root; otherwise prints what to install, and exits.
need_packages() {
    check_place
    [ $# -gt 0 ] || return 0
    local install="apt-get update && apt-get install -y --no-install-recommends $*"
    if ! command -v apt-get >/dev/null 2>&1; then
        die "this is missing: $*" \
            "Install it with the package manager of this system (the names are Debian's)."
    fi
    if [ "$(id -u)" -ne 0 ]; then
        die "this is missing, and only root may install it: $*" \
            "Paste this line, then run ${0##*/} again:" "" \
            "sudo sh -c '$install'"
    fi
    say "Installing $* with apt-get"
    local log
    log="$(mktemp)"
    if ! { apt-get update && DEBIAN_FRONTEND=noninteractive \
            apt-get install -y --no-install-recommends "$@"; } >"$log" 2>&1 </dev/null; then
        tail -n 15 "$log" >&2
        rm -f "$log"
        die "apt-get could not install: $*" \
            "Its last lines are above. To try by hand:" "" "$install"
    fi
    rm -f "$log"
}

# need_python: sets PYTHON; installs the distribution's if none is suitable.
need_python() {
    find_python
    [ -z "$PYTHON" ] || return 0
    need_packages python3-venv
    find_python
    [ -n "$PYTHON" ] || die "no Python of version 3.11 or newer with the venv module was found" \
        "Set PYTHON to one:  PYTHON=/path/to/python3 $0"
}

# Sets VENV: .venv of the checkout, or a cache directory if the checkout belongs to another user, or
# lies where Jupyter finds no configuration and no extension: it looks by patterns.
find_venv() {
    VENV="$ROOT/.venv"
    if [[ "$ROOT" = *[][*?]* ]] || [ ! -O "$ROOT" ] || [ ! -w "$ROOT" ] || { [ -e "$VENV" ] && [ ! -O "$VENV" ]; }; then
        local key
        key="$(printf '%s' "$ROOT" | cksum | cut -d ' ' -f 1)"
        VENV="${XDG_CACHE_HOME:-$HOME/.cache}/gvisor-kernel/venv-$key"
        mkdir -p "${VENV%/*}"
    fi
}

# need_environment NAME REQUIREMENT…: installs the project and the requirements into VENV.
# Takes a fraction of a second if nothing has changed since the last time.
need_environment() {
    local name="$1" stamp wanted
    shift
    find_venv
    stamp="$VENV/.gvisor-kernel-$name"
    wanted="$(printf '%s\n' "$ROOT" "$*" && cat "$ROOT/pyproject.toml" "$ROOT"/kernelspecs/*/*.json)"
    if [ -x "$VENV/bin/python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] \
            && "$VENV/bin/python" -I -c 'import gvisor_kernel' 2>/dev/null; then
        return
    fi
    if ! "$VENV/bin/python" -I -m pip --version >/dev/null 2>&1; then
        say "Creating an environment in $VENV with $PYTHON"
        "$PYTHON" -m venv --clear "$VENV" || die "the environment could not be created"
    fi
    say "Installing Python packages into $VENV (a minute or two the first time)"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$@" \
        || die "pip could not install the requirements" \
            "Its message is above. To start from scratch:  rm -rf $VENV"
    # pip would compile with one core. Sandboxes cannot write bytecode, so all of it is made here.
    # What does not compile is a template; pip would not complain either.
    "$VENV/bin/python" -W ignore -m compileall -q -j 0 "$VENV/lib" >/dev/null || true
    printf '%s\n' "$wanted" >"$stamp"
}

# find_runsc: prints the path of the runsc that kernels start with.
find_runsc() {
    "$VENV/bin/python" -I - 2>/dev/null <<'END'
from gvisor_kernel.runtimes.runsc.command_line import find_runsc
print(find_runsc().path)
END
}

# need_runsc: gets a current gVisor into VENV's user's store if there is none; as root, for all.
# Sets RUNSC to its path.
need_runsc() {
    ! RUNSC="$(find_runsc)" || return 0
    say "Installing gVisor: gvisor-kernel runsc install"
    if "$VENV/bin/gvisor-kernel" runsc install && RUNSC="$(find_runsc)"; then return; fi
    if [ "$(id -u)" -eq 0 ] && grep -qs '^ID=debian$' /etc/os-release; then
        say "Its bucket cannot be used, so this is Debian's release, of July 2024"
        need_packages runsc
        RUNSC="$(find_runsc)" && return
    fi
    die "there is no runsc, gVisor's program: the reason is above" \
        "Try it again:  $VENV/bin/gvisor-kernel runsc install" \
        "docs/install.md has other ways, such as a mirror or a file."
}

# want_docs: whether the packages that build the site of docs/ are there; installs them. A registry
# that is silent must not make the caller wait, and what is missing ends nothing.
want_docs() {
    (PIP_RETRIES=1 PIP_TIMEOUT=30 need_environment docs -e "$ROOT[docs]") && find_venv
}
