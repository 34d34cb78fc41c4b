"""What ``hvd-lm plan --out`` writes: the pick as a config.yaml and a job.sh, ready to run, and a picture of all settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hvd_lm.checkpoint.files import replace_file
from hvd_lm.communication.link import Link
from hvd_lm.communication.plan_picture import png
from hvd_lm.communication.planned import Plan
from hvd_lm.config import RunConfig
from hvd_lm.data.walk import STANDARD_INPUT
from hvd_lm.errors import ConfigError, why
from hvd_lm.settings_file import write_yaml

CONFIG, JOB, PICTURE = "config.yaml", "job.sh", "plan.png"

_ALONE = """\
#!/usr/bin/env bash
# Written by hvd-lm plan: {what}.
#
#   {job}                                   any flag of hvd-lm train may follow
#   OUT=runs/planned {job} --steps 100
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

exec hvd-lm train --config "$here/{config}" --out "${{OUT:-$here/run}}" "$@"
"""

_TOGETHER = """\
#!/usr/bin/env bash
# Written by hvd-lm plan: {what}.
#
#   {job}                                   on this machine; any flag of hvd-lm train may follow
#   HOSTS=one:4,two:4 {job}                 on hosts that reach each other by ssh, {ranks} ranks in all
#   OUT=runs/planned {job} --steps 100
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

refuse() {{ echo "$0: $1" >&2; exit 2; }}
# Names and numbers only: horovodrun hands them to ssh and to shells on the other hosts.
host='[A-Za-z0-9][A-Za-z0-9._-]*:[1-9][0-9]{{0,4}}'
[[ ${{HOSTS:-localhost:{ranks}}} =~ ^$host(,$host)*$ ]] ||
    refuse "HOSTS must be host:ranks,..., not '$HOSTS'"

exec horovodrun -np {ranks} ${{HOSTS:+-H "$HOSTS"}} {controller} \\
    hvd-lm train --config "$here/{config}" --out "${{OUT:-$here/run}}" "$@"
"""

_CONTROLLERS = {"Gloo": "--gloo", "MPI": '--mpi --mpi-args="--mca mpi_yield_when_idle 1 --oversubscribe"'}


def write_plan(found: Plan, run: RunConfig, link: Link, path: Path, out: Path) -> None:
    """Into the folder `out`; `path` is the link's file, by which the run is to judge its steps.

    Raises ConfigError if `out` cannot be written, or holds a run.
    """
    if (out / CONFIG).exists() and not (out / JOB).exists():
        raise ConfigError(f"--out {out} holds a {CONFIG} that is no plan's: name another folder")
    pick = found.pick
    passes = pick.backward_passes_per_step
    communication = replace(
        run.communication,
        compression=pick.compression,
        reduce_every=pick.reduce_every,
        reduce_start_steps=run.communication.reduce_start_steps if pick.reduce_every > 1 else 0,
        late_gradients=pick.late_gradients,
        backward_passes_per_step=passes,
        target_batch=None,
        link=path.absolute(),
    )
    data = replace(run.data, data=_absolute(run.data.data), validation_data=_absolute(run.data.validation_data))
    topology = replace(run.topology, data_parallel=None)
    try:
        out.mkdir(parents=True, exist_ok=True)
        # The job first: with it the folder is known as a plan's.
        replace_file(out / JOB, _job(found, link))
        (out / JOB).chmod(0o755)
        write_yaml(replace(run, data=data, communication=communication, topology=topology, out=out / "run"), out / CONFIG)
        (out / PICTURE).write_bytes(png(found))
    except OSError as error:
        raise ConfigError(f"cannot write --out {out}: {why(error, out)}") from error


def _absolute(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """As the job may be started from any folder."""
    return tuple(path if path == STANDARD_INPUT else path.absolute() for path in paths)


def _job(found: Plan, link: Link) -> str:
    pick = found.pick
    local = f", --reduce-every {pick.reduce_every}" if pick.reduce_every > 1 else ""
    way = f"--compression {pick.compression}{local}{', --late-gradients' if pick.late_gradients else ''}"
    what = f"ranks: {pick.ranks}, micro-batches a step: {pick.backward_passes_per_step}, {way}"
    template = _ALONE if pick.ranks == 1 else _TOGETHER
    return template.format(what=what, job=JOB, config=CONFIG, ranks=pick.ranks, controller=_CONTROLLERS[link.controller])


def words(out: Path) -> str:
    """What a person reads."""
    return f"the pick is in {out / CONFIG}, to be started with {out / JOB}; all settings are drawn in {out / PICTURE}"
