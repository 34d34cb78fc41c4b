#!/usr/bin/env bash
# The same language model learns English prose on RANKS ranks, once in each framework, through Horovod over Gloo.
#
#   jobs/first_run.sh                     about a minute on 2 cores
#   FRAMEWORKS=torch jobs/first_run.sh    one framework
#   jobs/first_run.sh --steps 300         any flag of hvd-lm train
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
ranks=${RANKS:-2}
for framework in $(tr ',' ' ' <<<"${FRAMEWORKS:-torch,tensorflow}"); do
    out=runs/first-$framework
    echo "== $framework on $ranks ranks"
    horovodrun -np "$ranks" --gloo hvd-lm train --config "$here/first_run.yaml" --framework "$framework" --out "$out" "$@"
    echo "== what the model writes after that"
    hvd-lm generate --checkpoint "$out" --framework "$framework" --prompt "The value of" --length 40 --temperature 0.8
done
