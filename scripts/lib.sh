# SPDX-License-Identifier: BSD-3-Clause
# Sourced by the other scripts: paths, the Debian packages that they need, and common functions.
# shellcheck shell=bash

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The packages, by purpose (the scripts that source this file use the names).
# shellcheck disable=SC2034
{
    build_packages=(gcc libc6-dev cmake ninja-build pkg-config nbdkit nbdkit-plugin-dev libnbd-dev
        libjansson-dev libmicrohttpd-dev libdeflate-dev libzstd-dev zlib1g-dev libssl-dev perl)
    package_packages=(build-essential debhelper dpkg-dev lintian pkgconf librbd-dev)
    serve_packages=(libnbd-bin python3-libnbd file)
    test_packages=(libcriterion-dev clang clang-format cppcheck shellcheck python3 python3-libnbd
        libnbd-bin qemu-utils qemu-system-common fio strace file mount e2fsprogs openssl socat zsh jq librbd-dev)
    ceph_packages=(ceph-mon ceph-osd ceph-common qemu-block-extra)
}

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# missing_packages PACKAGE...: prints those that aren't installed.
missing_packages() {
    comm -23 <(printf '%s\n' "$@" | sort -u) <(
        dpkg-query -W -f='${db:Status-Abbrev}${Package}\n' "$@" 2>/dev/null |
            sed -n 's/^ii *//p' | sort -u)
}

# need_packages PACKAGE...: installs those that are missing, as root or with sudo; otherwise names them.
need_packages() {
    if ! command -v dpkg-query >/dev/null; then
        echo "${0##*/}: not a Debian system; these packages, or what they are called here, are needed:" \
            "$*" >&2
        return
    fi
    local missing as_root=()
    mapfile -t missing < <(missing_packages "$@")
    if [ ${#missing[@]} -eq 0 ]; then
        return
    fi
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null || ! { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
            die "these packages are missing: ${missing[*]}
install them with: apt-get install ${missing[*]}"
        fi
        as_root=(sudo)
    fi
    echo "installing: ${missing[*]}" >&2
    "${as_root[@]}" apt-get update -q >&2 || echo "${0##*/}: the package lists are not fresh" >&2
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends "${missing[@]}" >&2 ||
        die "could not install: ${missing[*]}"
}

# Prints the build targets of everything that gets installed, without the tests.
product_targets() {
    printf '%s\n' plugin qimg
    sed -n 's/^qimg_manual(.*\/\(.*\)\.pod .*/man-\1/p' "$root/CMakeLists.txt"
}

# build_preset PRESET [TARGET...]: configures, if that wasn't done yet, and builds.
build_preset() {
    local preset=$1 folder=$root/build/$1 targets=()
    if [ $# -gt 1 ]; then
        targets=(--target "${@:2}")
    fi
    if [ ! -e "$folder/build.ninja" ]; then
        (cd "$root" && cmake --preset "$preset") || return
    fi
    cmake --build "$folder" "${targets[@]}"
}
