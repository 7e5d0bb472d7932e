#!/bin/sh
# What this project's CI runs, on any machine: no TPU is needed. `pip install 'torchtpu-dynamo[cpu,tpu]' pytest` comes first.
set -eu
cd "$(dirname "$0")"

# The programs are those that were committed.
CI=true python -m pytest -q

# They compile for the pods that the project runs on, and fit.
mkdir -p build
torchtpu compile model:block -t v5e:2x2 -t tpu7x:2x2x1 -o build/block.ttpu
torchtpu inspect build/block.ttpu
torchtpu inspect build/block.ttpu --html build/block.html
