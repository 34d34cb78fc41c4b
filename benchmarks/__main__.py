"""The bench: ``python -m benchmarks COMMAND``, from the repository's root."""

from __future__ import annotations

import signal
import sys

import tyro

from benchmarks.busy import Busy
from benchmarks.compare import Compare, list_peers
from benchmarks.compute import Compute
from benchmarks.exposed import Exposed
from benchmarks.launching import RunError
from benchmarks.links import LinkError
from benchmarks.predicted import Predicted
from benchmarks.prepare import Prepare
from benchmarks.reduction import Reduction
from benchmarks.stall import Stall
from benchmarks.writing import Writing


def main() -> int:
    # So that what was made for a run is removed when the bench is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if sys.argv[1:2] == ["peers"]:
        list_peers()
        return 0
    try:
        command = tyro.extras.subcommand_cli_from_dict(
            {
                "compare": Compare,
                "reduction": Reduction,
                "compute": Compute,
                "exposed": Exposed,
                "predicted": Predicted,
                "busy": Busy,
                "prepare": Prepare,
                "stall": Stall,
                "writing": Writing,
            },
            prog="python -m benchmarks",
            config=(tyro.conf.OmitArgPrefixes,),
        )
        return int(command.run())
    except (LinkError, RunError, ValueError) as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
