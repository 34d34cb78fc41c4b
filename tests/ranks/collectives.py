"""Everything that the ranks of a group do together, in each group of a grid of data x 2 ranks; then all over in a second job.

horovodrun -np 4 python collectives.py torch [plain]
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from common import report

from hvd_lm.adapters import adapter_class
from hvd_lm.adapters.job import GroupName, Job
from hvd_lm.config import TopologyConfig
from hvd_lm.errors import ConfigError


def in_group(job: Job, group: GroupName) -> dict[str, Any]:
    rank, its = job.topology.rank, job.groups[group]
    rows = np.arange(2 * its.size, dtype=np.float32).reshape(-1, 1) + 100 * rank
    # To each rank one row more than to the one before, the rows of all kinds told apart.
    splits = list(range(1, its.size + 1))
    sent = np.arange(sum(splits), dtype=np.float32)[:, None] + 100 * rank
    received, counts = job.exchange(sent, splits, group)
    late = its.place == its.size - 1
    time.sleep(0.2 * late)
    arrived = time.time()
    job.barrier(group)
    return {
        "ranks": its.ranks,
        "place": its.place,
        "sum": job.sum(np.array([float(rank), 0.5]), group).tolist(),
        "gather": job.gather(np.full((1, 2), rank, np.float32), group).tolist(),
        "scatter_sum": job.scatter_sum(rows, group)[:, 0].tolist(),
        "received": received[:, 0].tolist(),
        "counts": counts,
        "told": job.tell({"rank": rank, "text": "a\nb"}, group),
        "arrived": arrived,
        "left": time.time(),
    }


def main(framework: str, first: str = "grid") -> Any:
    join = adapter_class(framework).job_class
    grid = TopologyConfig(model_parallel=2)
    if first == "plain":
        join()
        try:
            join(topology=grid)
        except ConfigError as error:
            return str(error)
        return "none"
    results = []
    for _ in range(2):
        job = join(topology=grid)
        results.append({group: in_group(job, group) for group in job.groups})
        job.agree({"read another text": "the same"})
        different = {"read another text": "odd" if job.topology.rank == 3 else "same"}
        broadcast = job.broadcast({"rank": job.topology.rank, "text": "a\nb"})
        results[-1]["word"] = {"broadcast": broadcast, "disagree": str(job.common_error(different))}
    job.barrier()
    job.leave()
    return results


if __name__ == "__main__":
    report(main(*sys.argv[1:]))
