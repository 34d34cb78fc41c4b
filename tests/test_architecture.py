"""The borders of the package: frameworks stay inside hvd_lm/adapters, and everything public says what it is."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hvd_lm

PACKAGE = Path(hvd_lm.__file__).parent
ADAPTERS = PACKAGE / "adapters"
FILES = sorted(PACKAGE.rglob("*.py"))
FRAMEWORKS = {"torch", "tensorflow", "keras", "horovod", "onnx"}
FRAMEWORK_MODULES = re.compile(r"hvd_lm\.adapters\.(pytorch|tensorflow|export)\b")
"""Importing one of these imports a framework."""


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that `tree` imports: by statement, at any depth, or by a call with a literal name."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield module
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="__import__" | "import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield module


def framework_imports(source: str) -> list[str]:
    """What `source` imports of a framework, of Horovod, or of a module of ours that does."""
    found = imports(ast.parse(source))
    return [module for module in found if module.split(".")[0] in FRAMEWORKS or FRAMEWORK_MODULES.match(module)]


# --- imports ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "import torch",
        "import torch.nn as nn",
        "from torch import nn",
        "from torch.nn.functional import cross_entropy",
        "import numpy, tensorflow as tf",
        "def f():\n    import keras",
        "class A:\n    def f(self):\n        from horovod import torch as hvd",
        "if TYPE_CHECKING:\n    import torch",
        "try:\n    import horovod.torch\nexcept ImportError:\n    pass",
        "import importlib\nimportlib.import_module('torch')",
        "from importlib import import_module\nimport_module('horovod.tensorflow')",
        "__import__('tensorflow')",
        "from hvd_lm.adapters import pytorch",
        "from hvd_lm.adapters.export import onnx",
        "from hvd_lm.adapters.tensorflow.adapter import TensorFlowAdapter",
    ],
)
def test_checker_finds_an_import(source: str) -> None:
    assert framework_imports(source)


@pytest.mark.parametrize(
    "source",
    [
        "import numpy",
        "import torchlight",
        "name = 'torch'",
        "'import torch'",
        "# import torch",
        "from hvd_lm.adapters import adapter_class",
        "run('import horovod.torch')",
        "import importlib\nimportlib.import_module(name)",
    ],
)
def test_checker_leaves_the_rest_alone(source: str) -> None:
    assert framework_imports(source) == []


@pytest.mark.parametrize("path", [path for path in FILES if ADAPTERS not in path.parents], ids=name_of)
def test_no_framework_outside_adapters(path: Path) -> None:
    assert framework_imports(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("place", "others"),
    [
        ("__init__.py", FRAMEWORKS),
        ("base.py", FRAMEWORKS),
        ("pytorch", {"tensorflow", "keras", "onnx"}),
        ("tensorflow", {"torch", "onnx"}),
        ("export/pytorch.py", {"tensorflow", "keras", "horovod"}),
        ("export/keras.py", {"torch", "horovod"}),
        ("export/onnx.py", {"torch", "tensorflow", "keras", "horovod"}),
    ],
)
def test_adapter_knows_its_own_framework_only(place: str, others: set[str]) -> None:
    room = ADAPTERS / place
    files = sorted(room.rglob("*.py")) if room.is_dir() else [room]
    assert files
    for path in files:
        found = imports(ast.parse(path.read_text(encoding="utf-8")))
        assert [module for module in found if module.split(".")[0] in others] == [], path


def test_core_loads_no_framework() -> None:
    """Not by way of another library either."""
    modules = ", ".join(f"hvd_lm.{room}" for room in ("command_line.commands", "training.loop", "report.page", "export"))
    code = f"import sys, hvd_lm, {modules}; print(*sorted({{name.split('.')[0] for name in sys.modules}} & {FRAMEWORKS!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


RECIPE = ("build_horovod", "build_tools", "wheel_cache", "cuda_from_pip", "horovod_patches")


@pytest.mark.parametrize("name", [*(f"{name}.py" for name in RECIPE[:-1]), "horovod_patches/__init__.py"])
def test_build_horovod_needs_the_standard_library_only(name: str) -> None:
    """An image copies these and runs the first before anything is installed."""
    tree = ast.parse((PACKAGE / "job" / name).read_text(encoding="utf-8"))
    foreign = {module for module in imports(tree) if module.split(".")[0] not in {*RECIPE, *sys.stdlib_module_names, "__future__"}}
    assert {module.removeprefix("hvd_lm.job").removeprefix(".").split(".")[0] for module in foreign} <= {"", *RECIPE}


# --- rooms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_room_can_be_read_at_once(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def takers_of_run_config(tree: ast.AST) -> list[str]:
    """Functions that are given a whole RunConfig."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            found += [
                node.name for argument in arguments if argument.annotation and "RunConfig" in ast.unparse(argument.annotation)
            ]
    return found


def test_few_are_given_the_whole_config() -> None:
    """In training/ four on the way of a run, nothing below it; elsewhere only who reads, writes, completes or divides it."""
    takers = {
        str(path.relative_to(PACKAGE)): found
        for path in FILES
        if (found := takers_of_run_config(ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert {place: found for place, found in takers.items() if place.startswith("training/")} == {
        "training/leg.py": ["__init__"],
        "training/loop.py": ["train", "train_on", "_leg", "_describe"],
    }
    others = {"config/run.py", "idle_settings.py", "settings_file.py", "communication/measure.py", "communication/plan_files.py"}
    assert takers["communication/measure.py"] == ["of"]
    assert set(takers) <= {*others, "training/leg.py", "training/loop.py"}


def test_the_story_of_a_run_fits_a_page() -> None:
    tree = ast.parse((PACKAGE / "training" / "loop.py").read_text(encoding="utf-8"))
    story = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in ("train", "train_on", "_leg")]
    assert len(story) == 3
    for part in story:
        assert part.end_lineno is not None
        assert part.end_lineno - part.lineno < 60


# --- docstrings ------------------------------------------------------------------------------------------


def is_public(name: str) -> bool:
    return not name.startswith("_")


def undocumented(tree: ast.Module) -> list[str]:
    """Public classes and functions at the top level of a module that have no docstring, and the module itself."""
    missing = [] if ast.get_docstring(tree) else ["the module"]
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and is_public(node.name) and not ast.get_docstring(node):
            missing.append(node.name)
    return missing


def undocumented_fields(tree: ast.Module) -> list[str]:
    """Settings (fields of a class named ...Config) without a docstring under them; sections have that of their class."""
    missing = []
    for config in tree.body:
        if not (isinstance(config, ast.ClassDef) and config.name.endswith("Config")):
            continue
        for node, following in zip(config.body, [*config.body[1:], None], strict=True):
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
                continue
            is_section = isinstance(node.annotation, ast.Name) and node.annotation.id.endswith("Config")
            match following:
                case ast.Expr(value=ast.Constant(value=str())):
                    continue
            if not is_section:
                missing.append(f"{config.name}.{node.target.id}")
    return missing


def test_checker_of_docstrings_finds_what_lacks_one() -> None:
    source = '''
class A: ...
class _B: ...
def f(): ...
def _g(): ...
def h():
    """Documented."""
class CConfig:
    """Documented."""
    x: int = 1
    """Documented."""
    y: int = 2
    section: AConfig = AConfig()
    z: int = 3
'''
    assert undocumented(ast.parse(source)) == ["the module", "A", "f"]
    assert undocumented_fields(ast.parse(source)) == ["CConfig.y", "CConfig.z"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_public_names_have_docstrings(path: Path) -> None:
    assert undocumented(ast.parse(path.read_text(encoding="utf-8"))) == []


def test_settings_have_docstrings() -> None:
    """They are the help on the command line."""
    missing = [field for path in FILES for field in undocumented_fields(ast.parse(path.read_text(encoding="utf-8")))]
    assert missing == []
