"""Many Python threads and changes of the number of threads at once: values and gradients are those of one call after
the other; and the interpreter ends in peace, whatever its threads are doing."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import forks
import pytest
import torch
from torch import Tensor

from vssn import GRU, VSSN
from vssn_kernels.testing import OPS, ROWS, assert_close, assert_equal, cotangents, find_sample, gradients

THREADS = 8
TIMEOUT = 120  # seconds, for what would hang if it failed
Call = Callable[[], dict[str, Tensor]]


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def op_call(op: str) -> dict[str, Tensor]:
    """Outputs and gradients of an op, from fresh leaves."""
    sample = find_sample(op, ROWS[op].rich).to("cpu", torch.float32, requires_grad=True)
    outputs = sample.run("cpu")
    found = gradients(sample, outputs, cotangents(outputs))
    return {name: out.detach() for name, out in outputs.items()} | found


def layer_calls() -> dict[str, Call]:
    """Of a GRU and a model that all threads share; each call's gradients are its own."""
    torch.manual_seed(2)
    gru = GRU(6, 11, num_layers=2, bidirectional=True)
    model = VSSN(6, hidden_size=9, latent_size=3, noise_size=2)
    x = torch.rand(7, 4, 6).round()
    noise = (torch.randn(7, 4, 2), torch.randn(7, 4, 3))

    def grads_of(loss: Tensor, module: torch.nn.Module) -> dict[str, Tensor]:
        parameters = dict(module.named_parameters())
        found = torch.autograd.grad(loss, list(parameters.values()))
        return {f"grad of weight {name}": grad for name, grad in zip(parameters, found, strict=True)}

    def gru_call() -> dict[str, Tensor]:
        output, h_n = gru(x)
        return {"output": output.detach()} | grads_of(output.square().sum() + h_n.sum(), gru)

    def model_call() -> dict[str, Tensor]:
        out = model(x, noise=noise)
        return {"elbo": out.elbo.detach(), "kl_z": out.kl_z.detach()} | grads_of(out.loss, model)

    return {"GRU": gru_call, "VSSN": model_call}


def all_calls() -> dict[str, Call]:
    return {op: lambda op=op: op_call(op) for op in OPS} | layer_calls()


def require_same(name: str, got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    for part, expected in want.items():
        # A library's product, of which the bits are not ours: the input's of a layer, those of weights' gradients.
        if name.split()[0] not in OPS or "weight" in part or "bias" in part:
            assert_close(f"{name}: {part}", got[part], expected, 1e-5)
        else:
            assert_equal(f"{name}: {part}", got[part], expected)


def test_eight_threads_at_once() -> None:
    """Each goes through all ops and layers, from another one on, and changes its number of threads on the way."""
    calls = all_calls()
    torch.set_num_threads(1)
    want = {name: call() for name, call in calls.items()}
    names = list(calls)
    together = threading.Barrier(THREADS)

    def work(number: int) -> None:
        together.wait(TIMEOUT)
        for turn in range(2):
            torch.set_num_threads(1 + (number + turn) % 3)
            for name in names[number:] + names[:number]:
                require_same(f"{name} in thread {number}", calls[name](), want[name])

    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(work, number) for number in range(THREADS)]:
            done.result(TIMEOUT)


def test_the_number_of_threads_changes_during_calls() -> None:
    calls = all_calls()
    torch.set_num_threads(1)
    want = {name: call() for name, call in calls.items()}
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(lambda name=name: (name, calls[name]())) for _ in range(3) for name in calls]
        threads = 0
        while not all(done.done() for done in running):
            threads += 1
            torch.set_num_threads(1 + threads % 4)
    for done in running:
        name, got = done.result()
        require_same(name, got, want[name])


# ---- Processes -------------------------------------------------------------------------------------------------------


def all_in_a_child(results: multiprocessing.SimpleQueue) -> None:
    results.put({name: {part: t.tolist() for part, t in call().items()} for name, call in all_calls().items()})


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_that_starts_while_other_threads_are_in_calls(method: str) -> None:
    if method == "fork":
        forks.require_autograd()
    torch.set_num_threads(2)
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            op_call("gru_sequence")

    context = multiprocessing.get_context(method)
    results = context.SimpleQueue()
    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(work) for _ in range(2)]
        try:
            child = context.Process(target=all_in_a_child, args=(results,))
            child.start()
        finally:
            ended.set()
        for one in busy:
            one.result(TIMEOUT)
    got = results.get() if _ends(child, results) else {}
    torch.set_num_threads(1)
    for name, call in all_calls().items():
        found = {part: torch.tensor(values) for part, values in got[name].items()}
        for part, expected in call().items():
            assert_close(f"{name}: {part}", found[part].view_as(expected), expected, 1e-5)


def _ends(child: multiprocessing.process.BaseProcess, results: multiprocessing.SimpleQueue) -> bool:
    """Waits for what the child has to say; it hangs where it never comes."""
    for _ in range(10 * TIMEOUT):
        if not results.empty() or not child.is_alive():
            break
        child.join(0.1)
    said = not results.empty()
    if not said:
        child.kill()
    assert said, f"the child hangs, or ended with {child.exitcode}"
    return said


# ---- The end of the interpreter --------------------------------------------------------------------------------------

# Threads that come back for Python's lock while it ends, from the extension alone: PyTorch's own functions do end the
# process with an abort then.
AT_THE_END = """
import threading, time, torch
from vssn_kernels import _cpu
def work():
    while True:
        _cpu.waiting_cpu_seconds(0.001)
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
print("ended")
"""


def test_python_ends_while_a_daemon_thread_is_in_a_kernel() -> None:
    done = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.stdout, done.stderr, done.returncode) == ("ended\n", "", 0)
