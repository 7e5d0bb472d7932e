#!/usr/bin/env bash
# Sets up what `make demo` (argument: demo) or `make test` (argument: test) needs, and says nothing when it is all there.
# The versions are in pyproject.toml's dependency groups.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

group=${1:?usage: setup.sh demo|test}
venv=.venv
stamps=$venv/.stamps
minimum_rust=1.88
debian_packages=(
    g++                                           # links, and compiles one small C file
    llvm-22-dev libmlir-22-dev libpolly-22-dev    # MLIR and LLVM, linked into the extension
    libclang-22-dev                               # bindgen: Rust declarations from the MLIR and PJRT headers
    libxml2-dev libz3-dev libzstd-dev zlib1g-dev  # what LLVM's libraries refer to
)

say() { printf '==> %s\n' "$*"; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# at_least 1.95.0 1.88
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.15 python3.14 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "Python 3.11 or newer is needed: install it (on Debian 12: apt-get install python3 python3-venv), or name one in PYTHON"
}

check_machine() {
    [ "$(uname -sm)" = "Linux x86_64" ] || die "Linux on x86-64 is needed: the PJRT plugins have no other wheels"
}

check_rust() {
    local version
    version=$(cargo --version 2>/dev/null | cut -d ' ' -f 2) || true
    { [ -n "$version" ] && at_least "$version" "$minimum_rust"; } ||
        die "Rust $minimum_rust or newer is needed (found: ${version:-none}): install it with rustup"
    [ "$group" = demo ] || { cargo fmt --version && cargo clippy --version; } >/dev/null 2>&1 ||
        die "rustfmt and clippy are needed: rustup component add rustfmt clippy"
}

install_debian_packages() {
    local missing=() package sudo=()
    if ! command -v dpkg-query >/dev/null; then
        [ -x "${MLIR_SYS_220_PREFIX:-/usr/lib/llvm-22}/bin/llvm-config" ] ||
            die "LLVM and MLIR 22 are needed: install them with their headers and set MLIR_SYS_220_PREFIX to their folder"
        return 0
    fi
    for package in "${debian_packages[@]}"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    # Debian's own interpreter comes without the module that makes environments.
    if [ ! -d "$venv" ] && ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        missing+=(python3-venv)
    fi
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "Debian packages are missing: as root, apt-get install ${missing[*]}"
        sudo=(sudo)
    fi
    say "Installing Debian packages${sudo:+ with sudo} (a C++ toolchain and MLIR 22, which the compiler links in): ${missing[*]}"
    "${sudo[@]}" apt-get update -qq
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
        die "apt-get could not install ${missing[*]} (they are in Debian 12 with its security updates)"
}

# Prints the version of the torch that an interpreter sees, if it is one that we support.
usable_torch() {
    "$1" - <<'PY'
import re
from importlib.metadata import PackageNotFoundError, version

try:
    found = version("torch")
except PackageNotFoundError:
    found = "0.0"
if tuple(int(part) for part in re.match(r"(\d+)\.(\d+)", found).groups()) >= (2, 11):
    print(found)
PY
}

make_environment() {
    local outer
    [ ! -f "$stamps/venv" ] || return 0
    # One that is there and works is kept, whoever made it; one whose creation was interrupted is made anew.
    if "$venv/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        outer=kept
    else
        rm -rf "$venv"
        outer=$(usable_torch "$python")
    fi
    if [ "$outer" = kept ]; then
        say "Using the $venv that is there"
    elif [ -z "$outer" ]; then
        say "Creating $venv"
        "$python" -m venv "$venv"
    elif "$python" -c 'import sys; sys.exit(sys.prefix != sys.base_prefix)'; then
        say "Creating $venv, which sees the system's packages because torch $outer is among them"
        "$python" -m venv --system-site-packages "$venv"
    else
        say "Creating $venv, which sees the active environment's packages because torch $outer is among them"
        "$python" -m venv "$venv"
        "$python" -c 'import sysconfig; print(sysconfig.get_path("purelib")); print(sysconfig.get_path("platlib"))' \
            >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth"
    fi
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'pip>=25.1' # the first that knows --group
    mkdir -p "$stamps"
    touch "$stamps/venv"
}

pip_install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

install_python_packages() {
    local wanted torch
    wanted=$(sed -n '/^\[dependency-groups\]/,/^\[tool/p' pyproject.toml | sha256sum)
    [ "$(cat "$stamps/$group" 2>/dev/null)" != "$wanted" ] || return 0
    if [ -z "$(usable_torch "$venv/bin/python")" ]; then
        say "Installing torch into $venv, as there is none of 2.11 or newer (pip's own settings choose another build or index)"
        pip_install --group torch
    fi
    torch=$(usable_torch "$venv/bin/python")
    if [ "$group" = demo ]; then
        say "Installing the CPU plugin, transformers and maturin into $venv, for the demo and the build"
    else
        say "Installing the test tools, jax (the StableHLO verifier), libtpu and the model libraries into $venv, for the tests"
    fi
    # The torch that is there stays: nothing in the group may replace it.
    echo "torch==$torch" >"$stamps/constraints.txt"
    pip_install --constraint "$stamps/constraints.txt" --group "$group"
    echo "$wanted" >"$stamps/$group"
    [ "$group" = demo ] || cp "$stamps/$group" "$stamps/demo"
}

check_machine
python=$(find_python)
check_rust
install_debian_packages
make_environment
install_python_packages
