#!/usr/bin/env bash
# Runs the tests marked `sample` against another torch (argument: 2.11 to 2.15), in an environment of its own under build/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=${1:-}
case $version in
2.1[1-5]) ;;
*)
    echo "error: name the torch to test against, 2.11 to 2.15: make test-torch TORCH=2.11" >&2
    exit 1
    ;;
esac

venv=build/torch-$version
stamp=$venv/.stamp
wanted=$(sed -n '/^\[dependency-groups\]/,/^\[tool/p' pyproject.toml | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "==> Creating $venv with torch $version and the test tools"
    rm -rf "$venv"
    .venv/bin/python -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "torch==$version.*" --group run --group pytest
    echo "$wanted" >"$stamp"
fi
echo "==> Installing the wheel from dist/ into $venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall dist/*.whl
exec "$venv/bin/python" -m pytest tests/python -m sample -q
