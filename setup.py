"""Packaging; the version ranges hold jax 0.10 on Python 3.11 and jax 0.11 and 0.12 on Python 3.12 and later."""

import re
from pathlib import Path

from setuptools import find_packages, setup

JAX = "jax>=0.10,<0.13"
SERVING = ["fastapi>=0.115", "uvicorn>=0.30", "prometheus_client>=0.20"]

setup(
  name="gr2_jax",
  version=re.search(r'__version__ = "(.+)"', Path("gr2_jax/__init__.py").read_text(encoding="utf-8"))[1],
  description="Generative Reasoning Re-Ranker in JAX: semantic IDs, mid-training, reasoning distillation and RL for slates",
  long_description=Path("README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_packages(include=["gr2_jax", "gr2_jax.*"]),
  install_requires=[
    JAX,
    "flax>=0.12",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.11.30",
    "grain>=0.2.12",
    "array_record>=0.8",
    "threadpoolctl>=3",
    "safetensors>=0.5",
    "sentencepiece>=0.2",
    "tokenizers>=0.20",
    "ml-collections>=1.0",
    "tensorflow-datasets>=4.9.8",
    "importlib_resources>=6",  # tensorflow-datasets reads its files through it and does not ask for it
    "absl-py>=2.1",
    "numpy>=1.26",
    "scipy>=1.11",
    "scikit-learn>=1.4",
    "lightgbm>=4.3",
    "matplotlib>=3.8",
    "rich>=13",
    "markdown-it-py>=3",
  ],
  extras_require={
    "tpu": [JAX.replace("jax", "jax[tpu]", 1)],
    "cuda": [JAX.replace("jax", "jax[cuda12]", 1)],
    "test": [
      "pytest>=8",
      "pytest-xdist>=3.5",
      "hypothesis>=6.100",
      "rax>=0.4",
      "ruff>=0.6",
      "import-linter>=2",
      "mypy>=1.10",
      "nbmake>=1.5",
      "nbconvert>=7",
      "ipykernel>=6",
      "httpx>=0.27",
      "gguf>=0.17",
      *SERVING,
    ],
    "serving": SERVING,
    "gguf": ["gguf>=0.17"],
    "aot": ["libtpu>=0.0.42"],  # compiles for TPUs on a machine without one
    # The peers of experiments/benchmarks; the fork of pytrec_eval has wheels.
    "benchmark": ["rax>=0.4", "ranx>=0.3.20", "pytrec-eval-terrier>=0.5.6"],
    "notebooks": ["jupyterlab>=4", "nbconvert>=7"],
    "wandb": ["wandb>=0.17"],
    "tensorboard": ["tensorboardX>=2.6"],
  },
)
