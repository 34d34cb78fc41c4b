"""Fixtures of the suite: every test that takes `framework` runs once for each framework that is installed."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pools
import pytest

from hvd_lm.adapters.base import Adapter
from hvd_lm.config import FRAMEWORKS, CommunicationConfig, ModelConfig, OptimizerConfig

# Containers run as root, which OpenMPI refuses unless told twice.
os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")

# What a background shell, or nohup, has made this process ignore would be ignored by all that it starts.
for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, default)

# A gate must give the same answer twice.
hypothesis.settings.register_profile("gate", derandomize=True, deadline=None)
hypothesis.settings.load_profile("gate")

INSTALLED = [name for name in FRAMEWORKS if importlib.util.find_spec(name)]

MakeAdapter = Callable[..., Adapter]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first; of those that launch processes all of one framework after the other: few pools are alive at once."""
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    if item.get_closest_marker("ranks") is None:
        return 0
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    framework = parameters.get("framework")
    return 1 + (INSTALLED.index(framework) if framework in INSTALLED else len(INSTALLED))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker takes all tests of a framework, or else those of a file; the most at once come first."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFramework(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            return next((name for name in INSTALLED if name in test.partition("[")[2]), file)

    return ByFramework(config, log)


def pytest_sessionfinish() -> None:
    pools.end()


@pytest.fixture(params=INSTALLED)
def framework(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_adapter(framework: str) -> MakeAdapter:
    """Builds an adapter of the framework, alone in its job."""

    def make(
        model: ModelConfig, optimizer: OptimizerConfig | None = None, communication: CommunicationConfig | None = None
    ) -> Adapter:
        from hvd_lm import adapter

        made = adapter(framework, communication, threads=1)
        made.build(model, optimizer or OptimizerConfig())
        return made

    return make


HIDING = """
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name == {library!r} else find_spec(name, *rest)
"""


def hide(library: str, folder: Path) -> None:
    """With `folder` on PYTHONPATH `library` is as good as not installed."""
    (folder / "sitecustomize.py").write_text(HIDING.format(library=library))
