"""Fixtures of the suite: every test that takes `framework` runs once for each framework that is installed."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable
from pathlib import Path

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


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first; of those that launch processes all of one framework after the other: few pools are alive at once.

    Workers of pytest-xdist (``--dist loadgroup``) take the longest group first: a framework's ranks, or else a file.
    """
    items.sort(key=_turn)
    for item in items:
        ranks = f"ranks of {_framework(item) or INSTALLED[0]}"
        item.add_marker(pytest.mark.xdist_group(ranks if _turn(item) else item.path.stem))


def _turn(item: pytest.Item) -> int:
    if item.get_closest_marker("ranks") is None:
        return 0
    framework = _framework(item)
    return 1 + (INSTALLED.index(framework) if framework in INSTALLED else len(INSTALLED))


def _framework(item: pytest.Item) -> str | None:
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return parameters.get("framework")


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
