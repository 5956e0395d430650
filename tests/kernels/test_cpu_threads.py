"""The cpu backend's threads: the same bits however many there are, several Python threads at once, forked children,
DataLoader workers, one OpenMP runtime, waits on a crowded machine."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import forks
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vssn_kernels import _cpu
from vssn_kernels.testing import Sample, assert_equal, cotangents, gradients

TIMEOUT = 120  # seconds, for what would hang if it failed


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def gru_sample(steps: int, batch: int, hidden: int, **options: object) -> Sample:
    tensors = {
        "gates_x": torch.randn(steps, batch, 3 * hidden),
        "h0": torch.randn(batch, hidden),
        "weight_hh": torch.randn(3 * hidden, hidden) / hidden**0.5,
        "bias_hh": torch.randn(3 * hidden),
    }
    return Sample("gru_sequence", f"gru {steps}x{batch}x{hidden} {options}", tensors, dict(options))


def packed_sample(hidden: int, sizes: list[int], **options: object) -> Sample:
    tensors = gru_sample(1, sum(sizes), hidden).tensors
    tensors |= {"gates_x": tensors["gates_x"][0], "h0": torch.randn(sizes[0] + 1, hidden)}
    return Sample("gru_packed", f"packed {sizes}x{hidden}", tensors, {"batch_sizes": torch.tensor(sizes), **options})


def posterior_sample(steps: int, batch: int, width: int, latent: int, prior: bool, **options: object) -> Sample:
    tensors = {
        "context": torch.randn(steps, batch, width),
        "z0": torch.randn(batch, latent),
        "eps": torch.randn(steps, batch, latent),
        "weight_z": torch.randn(width, latent) / latent**0.5,
        "weight_out": torch.randn(2 * latent, width) / (2 * width**0.5),
        "bias_out": torch.randn(2 * latent) - 1,
    }
    if prior:
        tensors["prior.context"] = torch.randn(steps, batch, width)
        tensors["prior.weight_z"] = torch.randn(width, latent) / latent**0.5
        tensors["prior.weight_mu"] = torch.randn(latent, width) / (2 * width**0.5)
        tensors["prior.bias_mu"] = torch.randn(latent)
    return Sample("posterior_sequence", f"posterior {steps}x{batch}x{width}x{latent}", tensors, dict(options))


def interleaved_sample(steps: int, batch: int, sizes: tuple[int, int, int, int], **options: object) -> Sample:
    size, embed, width, latent = sizes
    tensors = {
        "gates_x": torch.randn(steps, batch, 3 * size),
        "embed_context": torch.randn(steps, batch, embed),
        "context": torch.randn(steps, batch, width),
        "h0": torch.randn(batch, size),
        "z0": torch.randn(batch, latent),
        "eps": torch.randn(steps, batch, latent),
        "weight_embed": torch.randn(embed, latent) / latent**0.5,
        "weight_zh": torch.randn(3 * size, embed) / embed**0.5,
        "weight_hh": torch.randn(3 * size, size) / size**0.5,
        "bias_hh": torch.randn(3 * size),
        "weight_h": torch.randn(width, size) / size**0.5,
        "weight_out": torch.randn(2 * latent, width) / (2 * width**0.5),
        "bias_out": torch.randn(2 * latent) - 1,
    }
    return Sample("interleaved_sequence", f"interleaved {steps}x{batch}x{sizes}", tensors, dict(options))


def gaussian_sample() -> Sample:
    names = ("mu", "logvar", "eps", "prior_mu", "prior_logvar")
    return Sample("gaussian_rsample_kl", "gaussian", {name: torch.randn(37, 50, 21) for name in names})


def mlp_sample(op: str, rows: int, widths: tuple[int, ...], hidden: int, out: int) -> Sample:
    tensors = {f"inputs[{number}]": torch.randn(rows, width) for number, width in enumerate(widths)}
    tensors |= {"weights[0]": torch.randn(hidden, sum(widths)) / sum(widths) ** 0.5, "bias": torch.randn(hidden)}
    if out:
        tensors |= {"weight_out": torch.randn(out, hidden) / hidden**0.5, "bias_out": torch.randn(out)}
    return Sample(op, f"{op} {rows}x{widths}x{hidden}", tensors)


def samples() -> list[Sample]:
    """Fewer rows than threads, rows that do not divide, and weights so large that the units are split."""
    lengths = torch.tensor([5, 0, 3, 5, 1, 2, 4])
    return [
        gru_sample(5, 1, 200),
        gru_sample(5, 2, 211, reverse=True),
        gru_sample(5, 7, 50, lengths=lengths, reverse=True),
        gru_sample(5, 7, 310, lengths=lengths),
        gru_sample(4, 23, 64),
        packed_sample(50, [7, 5, 5, 4, 1], reverse=True),
        packed_sample(310, [6, 3, 3, 1]),
        packed_sample(64, [23, 22, 9, *[1] * 20], reverse=True),
        posterior_sample(5, 1, 200, 40, True, activation="silu"),
        posterior_sample(5, 7, 65, 33, True, lengths=lengths),
        posterior_sample(4, 3, 510, 180, False, activation="relu"),
        interleaved_sample(5, 1, (200, 60, 50, 40), activation="silu"),
        interleaved_sample(5, 7, (65, 33, 34, 9), lengths=lengths, resets=torch.rand(5, 7) < 0.4, scale="softplus"),
        interleaved_sample(4, 3, (310, 300, 250, 150), resets=torch.rand(4, 3) < 0.3),
        gaussian_sample(),
        mlp_sample("mlp", 1001, (33, 8), 64, 20),
        mlp_sample("gaussian_mlp", 130, (50,), 100, 34),
        mlp_sample("split_linear", 777, (20, 60), 90, 0),
        Sample("bernoulli_log_prob", "bernoulli", {"logits": torch.randn(911, 88), "x": torch.rand(911, 88)}),
    ]


def run(sample: Sample) -> dict[str, Tensor]:
    """Outputs and the gradients of all inputs; of weights and biases too."""
    leaves = sample.to("cpu", torch.float32, requires_grad=True)
    outputs = leaves.run("cpu")
    found = gradients(leaves, outputs, cotangents(outputs))
    return {name: out.detach() for name, out in outputs.items()} | found


def is_parameter(name: str) -> bool:
    return "weight" in name or "bias" in name


@pytest.mark.parametrize("index", range(len(samples())), ids=[str(sample) for sample in samples()])
def test_the_same_bits_at_every_thread_count(index: int) -> None:
    sample = samples()[index]
    torch.set_num_threads(1)
    alone = run(sample)
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        for name, actual in run(sample).items():
            if is_parameter(name):
                error = (actual - alone[name]).norm() / alone[name].norm()
                assert error < 1e-6, f"{name} with {threads} threads: relative error {error:.2g}"
            else:
                assert_equal(f"{name} with {threads} threads", actual, alone[name])


@pytest.mark.parametrize("size", [(40, 27, 64), (1, 16, 64)], ids=["weights packed", "weights as they are"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_gives_the_same_bits_in_every_batch(threads: int, size: tuple[int, int, int]) -> None:
    """It falls into tiles of other heights there. So few rows and steps that they meet the weights as they are, where
    sums run in another order, are another matter than those for which weights are packed."""
    torch.set_num_threads(threads)
    whole = gru_sample(*size)
    output = whole.run("cpu")["output"]
    for rows in (slice(0, 1), slice(3, 5), slice(9, 16), slice(1, 26)):
        part = whole.replace({"gates_x": whole.tensors["gates_x"][:, rows], "h0": whole.tensors["h0"][rows]})
        assert_equal(f"rows {rows}", part.run("cpu")["output"], output[:, rows])


def test_several_python_threads_at_once() -> None:
    torch.set_num_threads(2)
    work = samples()
    alone = [run(sample) for sample in work]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for sample, together, expected in zip(work, pool.map(run, work), alone, strict=True):
                for name, actual in together.items():
                    if not is_parameter(name):
                        assert_equal(f"{sample}: {name}", actual, expected[name])


# ---- Forked children -------------------------------------------------------------------------------------


def forked_run(results: multiprocessing.SimpleQueue) -> None:
    totals = [{name: tensor.double().sum().item() for name, tensor in run(sample).items()} for sample in samples()]
    results.put((torch.get_num_threads(), totals))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_forked_child_runs_on_one_thread_and_does_not_hang() -> None:
    forks.require_autograd()
    torch.set_num_threads(2)
    for sample in samples():  # so that the parent's pool of threads exists
        run(sample)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    torch.manual_seed(3)
    child = context.Process(target=forked_run, args=(results,))
    child.start()
    child.join(TIMEOUT)
    hung = child.is_alive()
    child.kill()
    assert not hung, "the forked child hangs"
    assert child.exitcode == 0
    threads, totals = results.get()
    assert threads == 1
    torch.set_num_threads(1)
    torch.manual_seed(3)
    for sample, total in zip(samples(), totals, strict=True):
        for name, tensor in run(sample).items():
            assert total[name] == pytest.approx(tensor.double().sum().item(), rel=1e-6), f"{sample}: {name}"
    assert torch.get_num_threads() == 1


class Recurrences(Dataset):
    """Each item is the sum of a GRU's gradient, computed in the worker."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        torch.manual_seed(index)
        return run(gru_sample(6, 5, 64))["grad of gates_x"].sum()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_dataloader_workers(method: str) -> None:
    if method == "fork":
        forks.require_autograd()
    torch.set_num_threads(2)
    here = torch.stack([Recurrences()[index] for index in range(4)])
    loader = DataLoader(Recurrences(), batch_size=4, num_workers=1, multiprocessing_context=method, timeout=TIMEOUT)
    assert_equal("the sums", next(iter(loader)), here)


# ---- The OpenMP runtime ----------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="lists the mapped libraries through /proc")
def test_one_openmp_runtime_is_mapped() -> None:
    code = (
        "import vssn_kernels, torch; from vssn_kernels.backend import cpu\n"
        "mu = torch.randn(400, 100); cpu.gaussian_forward(mu, mu, None, None, None)\n"
        "print('\\n'.join(sorted({line.split()[-1] for line in open('/proc/self/maps') if 'omp' in line})))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT, check=True)
    runtimes = [path for path in result.stdout.split() if "gomp" in path or "iomp" in path or "libomp" in path]
    assert len(runtimes) == 1, runtimes


# ---- A crowded machine: processor time is counted, which does not depend on how crowded it is ------------------------

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the waits are shortened on Linux")


@pytest.fixture
def usual_waits() -> Iterator[None]:
    yield
    _cpu.shorten_waits(False, 2)


@linux_only
def test_who_waits_at_a_barrier_sleeps() -> None:
    """Spinning or yielding until the other came would take all of the half second."""
    assert _cpu.waiting_cpu_seconds(0.5) < 0.1


SPIN = """
import time, torch
from vssn_kernels import _cpu

def spun():  # seconds that PyTorch's second thread spins after its work, in ten tries
    x = torch.randn(1 << 20)
    out, total = torch.empty_like(x), 0.0
    for _ in range(10):
        torch.add(x, x, out=out)
        before = time.process_time()
        time.sleep(0.05)
        total += time.process_time() - before
    return total

torch.set_num_threads(2)
times = [spun()]
for shorten in (True, False):
    _cpu.shorten_waits(shorten, 2)
    assert _cpu.waits_are_short() == shorten
    times.append(spun())
print(*times)
"""


@linux_only
def test_short_waits_hold_for_pytorchs_threads_and_can_be_undone() -> None:
    """In a process of its own: where other pools of threads are left, libgomp waits shortly as it is."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    result = subprocess.run([sys.executable, "-c", SPIN], capture_output=True, text=True, env=environment, check=True)
    usual, short, again = map(float, result.stdout.split())
    assert short < 0.005, f"{1e3 * short:.2f} ms of spinning in 10 waits"
    if os.cpu_count() != 1:
        assert usual > short
        assert again > short


@linux_only
def test_a_forked_child_of_a_process_with_short_waits_works(usual_waits: None) -> None:
    test_dataloader_workers("fork")
    _cpu.shorten_waits(True, 2)
    test_dataloader_workers("fork")


def test_a_crowd_is_noticed_and_looked_for_again() -> None:
    alone = [(0.1 * i, 0.1 * i, i) for i in range(20)]  # a switch in 0.1 s of work
    assert not any(_cpu.crowded(alone))
    waiting = [(0.1 * i, 0.001 * i, i) for i in range(20)]  # too little work to tell
    assert not any(_cpu.crowded(waiting))
    shared = [(0.1 * i, 0.05 * i, 15 * i) for i in range(20)]  # half of a core, in turns of 3 ms
    assert _cpu.crowded(shared) == [False] + 19 * [True]
    after = [(1.9 + 0.1 * i, 0.95 + 0.1 * i, 285 + i) for i in range(1, 60)]  # the core is its own again
    found = _cpu.crowded(shared + after)[20:]
    assert found[0]
    assert not any(found[35:])
    assert any(_cpu.crowded(shared + [(7 + now, 1 + busy, 300 + switches) for now, busy, switches in shared])[21:])


HOG = """
import os, time
parent, end = os.getppid(), time.time() + 60
while os.getppid() == parent and time.time() < end:
    pass
"""
CROWDED = """
import subprocess, sys, time, torch, vssn_kernels
from vssn_kernels import _cpu
hogs = [subprocess.Popen([sys.executable, "-S", "-c", sys.argv[1]]) for _ in range(2 * torch.get_num_threads())]
logits = torch.randn(4000, 88)
end = time.time() + 30
while time.time() < end and not _cpu.waits_are_short():
    vssn_kernels.bernoulli_log_prob(logits, logits)
print(_cpu.waits_are_short())
for process in hogs:
    process.kill()
"""


@linux_only
@pytest.mark.parametrize(("variables", "short"), [({}, "True"), ({"VSSN_SHARE_CORES": "0"}, "False")], ids=str)
@pytest.mark.slow
def test_waits_become_short_beside_busy_processes(variables: dict[str, str], short: str) -> None:
    threads = {"OMP_NUM_THREADS": str(max(2, len(os.sched_getaffinity(0))))}
    environment = {key: value for key, value in os.environ.items() if key != "VSSN_SHARE_CORES"} | threads | variables
    result = subprocess.run(
        [sys.executable, "-c", CROWDED, HOG], env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == short
