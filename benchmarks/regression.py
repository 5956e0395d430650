"""pytest-benchmark cases that watch this library alone, from one commit to the next. Not part of the ordinary tests.

pytest benchmarks/regression.py --benchmark-enable --benchmark-autosave stores a run; with --benchmark-compare a later
one stands beside it.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest

from benchmarks import cases
from benchmarks.peers import OURS, make_contestant
from benchmarks.problem import BACKWARD, FORWARD, SIZES, Problem
from vssn_kernels import keep_memory

PROBLEMS: dict[str, functools.partial[Problem]] = {
    "gru_sequence-H64": functools.partial(cases.gru_sequence, 64, 32, 64),
    "gru_sequence-H256": functools.partial(cases.gru_sequence, 64, 32, 256),
    "gru_sequence-H512-B1": functools.partial(cases.gru_sequence, 64, 1, 512),
    "gru_packed-H64": functools.partial(cases.gru_packed, 64, 32, 64),
    "posterior_sequence-S": functools.partial(cases.posterior_sequence, 100, 16, 64, 16),
    "posterior_sequence-L": functools.partial(cases.posterior_sequence, 100, 32, 512, 100),
    "interleaved_sequence-S": functools.partial(cases.interleaved_sequence, 100, 16, 64, 64, 64, 16),
    "interleaved_sequence-L": functools.partial(cases.interleaved_sequence, 100, 32, 512, 512, 512, 100),
    "gaussian_rsample_kl-L": functools.partial(cases.gaussian_rsample_kl, 100, 32, 100),
    "gaussian_kl-L": functools.partial(cases.gaussian_kl, 100, 32, 100),
    "mlp-L": functools.partial(cases.mlp, 100, 32, 100, 512, 200),
    "gaussian_mlp-L": functools.partial(cases.gaussian_mlp, 100, 32, 200, 512, 32),
    "split_linear-L": functools.partial(cases.split_linear, 100, 32, 512, 200),
    "bernoulli_log_prob-L": functools.partial(cases.bernoulli_log_prob, 100, 32, 200),
    "train_step-S": functools.partial(cases.train_step, SIZES["S"]),
    "train_step-M": functools.partial(cases.train_step, SIZES["M"]),
}


@pytest.mark.parametrize("run", [FORWARD, BACKWARD])
@pytest.mark.parametrize("name", PROBLEMS)
def test_time(benchmark: Any, name: str, run: str) -> None:
    keep_memory()
    benchmark.group = name.partition("-")[0]
    benchmark(make_contestant(OURS, PROBLEMS[name](), run).step)
