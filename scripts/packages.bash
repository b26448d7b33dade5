# Sourced by the scripts beside: which Debian packages are missing, and installing them.
# shellcheck shell=bash

missing=()

# need PACKAGE COMMAND...: the package is missing when the command fails.
need() {
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

# need_to_build PYTHON: what pip needs to build pyfuse3 for that Python.
need_to_build() {
    need pkg-config command -v pkg-config
    need libfuse3-dev test -e /usr/include/fuse3/fuse_lowlevel.h
    need gcc command -v gcc
    need libc6-dev test -e /usr/include/stdio.h
    need python3-dev "$1" -c 'import os, sysconfig
os.stat(os.path.join(sysconfig.get_path("include"), "Python.h"))'
    need python3-venv "$1" -c 'import ensurepip, venv'
}

# install_needed: installs what is missing as root or by sudo, without a question and without
# starting a service; where it cannot, prints the line to type and fails.
install_needed() {
    if [ ${#missing[@]} = 0 ]; then
        echo "nothing"
        return 0
    fi
    local line="apt-get install -y --no-install-recommends ${missing[*]}"
    local become=()
    if [ "$(id -u)" != 0 ]; then
        become=(sudo)
        # Asks for a password only where there is somebody to ask.
        if ! command -v sudo >/dev/null || { ! sudo -n true 2>/dev/null && ! [ -t 0 ]; }; then
            printf 'Missing; please run: sudo %s\n' "$line" >&2
            return 1
        fi
    fi
    echo "$line"
    # invoke-rc.d(8) starts nothing while this file says 101. One that is there is left alone.
    local policy=/usr/sbin/policy-rc.d
    if ! (
        if [ ! -e $policy ]; then
            trap '"${become[@]}" rm -f $policy' EXIT
            printf '#!/bin/sh\nexit 101\n' | "${become[@]}" tee $policy >/dev/null
            "${become[@]}" chmod 755 $policy
        fi
        "${become[@]}" env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 bash -c \
            "apt-get update -qq && $line -qq" </dev/null >/dev/null
    ); then
        printf 'apt-get failed; please run: %s\n' "$line" >&2
        return 1
    fi
}

# unpack DIRECTORY PACKAGE...: puts what is in packages into a directory, without installing them.
unpack() {
    local into=$1 fetched
    shift
    fetched=$(mktemp -d) || return
    # apt's sandbox user cannot write there: apt says so, and goes on without the sandbox.
    (cd "$fetched" && apt-get download -qq "$@" 2>/dev/null) &&
        mkdir -p "$into" &&
        find "$fetched" -name '*.deb' -exec dpkg-deb -x {} "$into" \;
    local status=$?
    rm -rf "$fetched"
    return $status
}
