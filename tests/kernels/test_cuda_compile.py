"""The extension builds and imports; every .cu compiles alone for every architecture, spills nothing, and multiplies on
tensor cores where it should."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from machine_code import EXCHANGES, EXCHANGES_OF_GRID, EXCHANGES_OR_PRODUCTS, PRODUCTS, Code

from benchmarks import ROOT, cuda_resources
from benchmarks.cuda_resources import ARCHITECTURES, COMMAND, SOURCES, Kernel, compile_unoptimised, kernels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cuda_resources.nvcc() is None, reason="nvcc is not found: install the CUDA toolkit"),
]
# The compute types of Product<> that tensor cores multiply, as they stand among a kernel's template arguments.
TENSOR_CORE_TYPES = r"[<, ](?:__nv_bfloat16|__half|tf32)[,>]"


# Prints the answers of a module that takes the place of vssn_kernels._cuda. PyTorch says that there is a GPU: there
# vssn_kernels asks the module when it is imported.
CALLS = """
import importlib.util, json, sys
from unittest import mock
spec = importlib.util.spec_from_file_location("vssn_kernels._cuda", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.modules[spec.name] = module
import torch
with mock.patch.object(torch.cuda, "is_available", lambda: True):
    import vssn_kernels
from vssn_kernels.backend.cuda import gru, interleaved, posterior

def answer(call):
    try:
        return ["answer", repr(call())]
    except RuntimeError as error:
        return ["error", str(error)]

sizes = interleaved.Sizes(64, 32, 48, 16)
answers = {
    "status": vssn_kernels.backends()["cuda"],
    "architectures": module.architectures,
    "signatures": [found.__doc__ or "" for found in vars(module).values() if callable(found)],
    "capabilities": answer(module.capabilities),
    "set_device": answer(lambda: module.set_device(0)),
    "gru": answer(lambda: gru.describe_plan(torch.float32, 32, 64)),
    "posterior": answer(lambda: posterior.plan(torch.float32, 64, 16, False, False)),
    "interleaved": answer(lambda: interleaved.plan(torch.bfloat16, sizes, True)),
}
print(json.dumps(answers))
"""


def test_the_extension_builds_imports_and_answers(tmp_path: Path) -> None:
    """What `nvcc -cubin` of the tests below does not see: the host's part of each .cu, the bindings, the link.

    Without a GPU each call is an error of the runtime's, and none ends the process."""
    wish = {"VSSN_BUILD_CUDA": "1", "VSSN_CUDA_ARCHS": "90a"}
    build = [sys.executable, "tests/cuda_build.py", str(tmp_path)]
    made = subprocess.run(build, cwd=ROOT, env=os.environ | wish, capture_output=True, text=True, check=False)
    said = made.stdout + made.stderr
    assert made.returncode == 0, said[-8000:]
    assert "warning" not in said, said[-8000:]
    (built,) = tmp_path.glob("vssn_kernels/_cuda.*")
    calls = [sys.executable, "-c", CALLS, str(built)]
    ran = subprocess.run(calls, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"exit status {ran.returncode}: {ran.stderr[-2000:]}"
    answers = json.loads(ran.stdout.splitlines()[-1])
    assert answers.pop("architectures") == "sm_90a"
    signatures = answers.pop("signatures")
    assert any(signature.startswith("capabilities() -> list[int]") for signature in signatures), signatures
    for signature in signatures:  # pybind11 writes a type that it cannot convert as C++ names it
        assert "::" not in signature, signature
    status = answers.pop("status")
    if answers["capabilities"][0] == "answer":
        assert re.fullmatch(r"\[[\d, ]*\]", answers["capabilities"][1])
        return  # with a GPU the tests that need one tell more
    assert status.startswith("no CUDA device could be used (cudaGetDeviceCount: "), status
    for name, (kind, text) in answers.items():
        assert kind == "error", f"{name} without a GPU: {text}"
        assert re.fullmatch(r"cuda(GetDeviceCount|SetDevice|GetDevice): \S.*", text), f"{name}: {text}"


def of_one_op(*values: str) -> Any:
    """A test's values, the first an op or a source of one. What is read of an op's code for sm_90a runs in one process
    of several, which compiles it once."""
    return pytest.param(*values, marks=pytest.mark.xdist_group(f"sm_90a {re.split('[_.]', values[0])[0]}"))


@pytest.mark.parametrize(
    ("source", "architecture"),
    [
        of_one_op(source, architecture) if architecture == "sm_90a" else (source, architecture)
        for source in SOURCES
        for architecture in ARCHITECTURES
    ],
)
def test_compiles_without_spills(source: str, architecture: str) -> None:
    for kernel in kernels(source, architecture):
        assert kernel.spilled == 0, f"{kernel.name} for {architecture} spills {kernel.spilled} bytes"
        assert kernel.stack == 0, f"{kernel.name} for {architecture} keeps {kernel.stack} bytes in local memory"
        multiplies = not source.startswith("gaussian") and "_pack<" not in kernel.name
        if architecture == "sm_80" and in_a_cluster(kernel):  # which it does not have: no plan chooses the kernel there
            multiplies = False
        if multiplies and re.search(TENSOR_CORE_TYPES, kernel.name):
            assert kernel.tensor_core > 0, f"{kernel.name} for {architecture} has no tensor-core instruction"
        if source.startswith("gaussian") and takes_16_bytes(kernel):
            assert kernel.wide > 0, f"{kernel.name} for {architecture} has no access of 16 bytes"


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "sm_90a"])
@pytest.mark.parametrize("source", SOURCES)
def test_compiles_unoptimised(source: str, architecture: str) -> None:
    """In place of the test above for these architectures where it has to be quick: an error is found, no spill is."""
    compile_unoptimised(source, architecture)


def takes_16_bytes(kernel: Kernel) -> bool:
    """forward_kernel<float, 4>: elements of 4 bytes, 4 at a time."""
    match = re.search(r"<(\w+), (\d+)>", kernel.name)
    assert match, kernel.name
    return int(match[2]) * (4 if match[1] == "float" else 2) == 16


@pytest.mark.parametrize("op", [of_one_op(op) for op in ("gru", "posterior", "interleaved")])
def test_every_compute_type_has_its_kernels(op: str) -> None:
    """So that the test above cannot pass for want of kernels."""
    names = [k.name for source in SOURCES if source.startswith(op) for k in kernels(source, "sm_90a")]
    for direction in ("forward", "backward"):
        for compute in ("__nv_bfloat16", "__half", "tf32", "float"):
            assert any(direction in name and re.search(rf"[<, ]{compute}[,>]", name) for name in names), names


def recurrences(source: str) -> list[Kernel]:
    return [kernel for kernel in kernels(source, "sm_90a") if "_pack<" not in kernel.name]


def reads_single_elements(kernel: Kernel) -> bool:
    """Not paired: odd widths, and rows that start anywhere."""
    return re.search(r"[<, ]false[,>]", kernel.name.split("Shape")[0]) is not None


def in_one_block(kernel: Kernel) -> bool:
    """Of the GRU, compiled for a team of one block: Exchange::block."""
    return "(Exchange)1>" in kernel.name


# What the products of a grid's step read of shared memory may come by the scoreboard of the next input: the wait for
# the state lies between them, but round it leads the way of the first step, which has none.
UNSEEN = re.compile(r"gru_forward_kernel<\w+, \d, \d, true, \(Exchange\)0>")


def exchanges_of(kernel: Kernel) -> re.Pattern[str]:
    """Behind which a load has had its time."""
    if in_one_block(kernel):
        return EXCHANGES_OR_PRODUCTS
    return EXCHANGES_OF_GRID if "gru_forward" in kernel.name and "(Exchange)0>" in kernel.name else EXCHANGES


def in_a_cluster(kernel: Kernel) -> bool:
    """Compiled for blocks that share their memory: Exchange::cluster of the GRU, Meeting::all and owner."""
    return re.search(r"\(Exchange\)2>|Meeting\)[23]>", kernel.name) is not None


RECURRENCES = tuple(source for source in SOURCES if source.endswith(("_forward.cu", "_backward.cu")))
OF_RECURRENCES = [of_one_op(source) for source in RECURRENCES]


@pytest.mark.parametrize("source", OF_RECURRENCES)
def test_a_step_waits_for_no_global_load(source: str) -> None:
    """Inputs, single elements too, are loaded a step ahead: between a load and the first instruction that waits for it
    lies an exchange. Nothing is read or written byte by byte, and nobody divides integers."""
    assert recurrences(source)
    for kernel in recurrences(source):
        code = Code(kernel.code)
        steps = code.steps if source.startswith("gru") else code.outermost(code.steps)
        assert len(steps) == 1, f"{kernel.name}: {len(steps)} loops over steps"
        names = [code.all[i].name for i in steps[0]]
        bytewise = [name for name in names if re.match(r"(LDG?|STG?)\.E\.[US]8", name)]
        assert not bytewise, f"{kernel.name} has {len(bytewise)} accesses of single bytes in a step"
        waits = [] if UNSEEN.search(kernel.name) else code.waited_for_at_once(steps[0], exchanges_of(kernel))
        assert not waits, f"{kernel.name} waits at once for {len(waits)} loads: {[load.name for load in waits[:4]]}"
        # 32 bits: by way of a reciprocal of floats; 64 bits: a function is called.
        divisions = [name for name in names if name.startswith(("I2F.RP", "I2F.U32.RP", "CALL"))]
        assert not divisions, f"{kernel.name} divides {len(divisions)} integers in a step"


@pytest.mark.parametrize("source", OF_RECURRENCES)
def test_a_batch_tile_in_one_block_knows_no_cluster(source: str) -> None:
    """Pairs have kernels for each exchange (GRU), or each way in which sums meet (posterior): 1 is one block's."""
    kinds: dict[str, list[bool]] = {}
    for kernel in recurrences(source):
        if match := re.search(r"<(\w+), .*\b(?:Exchange|Meeting)\)([12])>", kernel.name):
            code = Code(kernel.code)
            (steps,) = code.steps if source.startswith("gru") else code.outermost(code.steps)
            sends = any(code.all[i].name.startswith(("STAS", "SYNCS")) for i in steps)
            assert sends == (match[2] == "2"), kernel.name
            kinds.setdefault(match[1], []).append(sends)
    assert set(kinds) == {"__nv_bfloat16", "__half", "tf32", "float"}
    assert all(len(set(found)) == 2 for found in kinds.values()), kinds


# Of the GRU's backward pass: two batch tiles side by side, or multiply-adds, leave no register for it, and have a
# longer step; pairs without turns are loaded a whole step ahead of the wait before which they are used. Of the
# posterior: single elements of both networks in the wide shape.
NO_PREFETCH = re.compile(
    r"gru_backward_kernel<(?:float, |\w+, \d, 2, |\w+, \d, 1, true, \(Exchange\)[02]>"
    r"|__\w+, \d, 1, true, \(Exchange\)1>)"
    r"|<.*, false, posterior::Shape<2, 8, 4, 2>, true>"
)


@pytest.mark.parametrize("source", OF_RECURRENCES)
def test_a_step_asks_later_inputs_into_l2(source: str) -> None:
    for kernel in recurrences(source):
        code = Code(kernel.code)
        steps = code.steps if source.startswith("gru") else code.outermost(code.steps)
        found = any(code.all[i].name.startswith("CCTL.E.PF2") for i in steps[0])
        assert found != bool(NO_PREFETCH.search(kernel.name)), kernel.name


@pytest.mark.parametrize("source", OF_RECURRENCES)
def test_half_storage_is_written_in_words(source: str) -> None:
    for kernel in recurrences(source):
        if reads_single_elements(kernel) or not re.search("__half|__nv_bfloat16", kernel.name):
            continue
        code = Code(kernel.code)
        steps = code.steps if source.startswith("gru") else code.outermost(code.steps)
        halves = [i for i in steps[0] if code.all[i].name == "STG.E.U16"]
        # posterior_backward writes the first state's gradient, of any alignment, in its last step.
        assert len(halves) <= (4 if source == "posterior_backward.cu" else 0), f"{kernel.name}: {len(halves)}"


RELEASE, POLL = re.compile("REDG"), re.compile(r"LDG\.E\.STRONG")
COPY, COPIED = re.compile("LDGSTS"), re.compile("DEPBAR|LDGDEPBAR")


@pytest.mark.parametrize("source", [of_one_op("gru_forward.cu"), of_one_op("gru_backward.cu")])
def test_tiles_that_take_turns_hide_their_exchange(source: str) -> None:
    """A turn has one release, one poll and no fence behind it. From a release to the next one, and so to the wait for
    what it released, leads no way past the products: the next turn is another tile's (test_cuda_gru.py has the order of
    the counters). On tensor cores the next state comes during forward's products, else they stand before its poll."""
    found = set()
    for kernel in recurrences(source):
        if not (match := re.search(r"<(\w+), .*\(Exchange\)3>", kernel.name)):
            continue
        found.add(match[1])
        code = Code(kernel.code)
        (turn,) = code.steps

        def those(pattern: re.Pattern[str], code: Code = code, turn: frozenset[int] = turn) -> list[int]:
            return [i for i in sorted(turn) if pattern.match(code.all[i].name)]

        (release,), (_,), (_,) = those(RELEASE), those(POLL), those(re.compile("MEMBAR"))
        assert not code.reaches(release, RELEASE, turn, PRODUCTS), kernel.name
        if source == "gru_forward.cu":
            copies = those(COPY)
            assert copies, kernel.name
            if match[1] == "float":
                assert not code.reaches(release, POLL, turn, PRODUCTS), kernel.name
            else:
                assert not any(code.reaches(copy, COPIED, turn, PRODUCTS) for copy in copies), kernel.name
    assert found == {"__nv_bfloat16", "__half", "tf32", "float"}


POLLS = """
#include "primitives.cuh"
using namespace vssn::gpu;
struct Params { unsigned* flag; Mailbox* mailbox; };
VSSN_KERNEL waits(Params p) { await(p.mailbox, 0); wait_acquire(p.flag, 1); check_acquire(p.flag, 1); }
"""
WAITS = (
    b"a mailbox that blocks of the cluster send to",
    b"a counter that blocks of the grid add to",
    b"a counter of batch tiles that take turns",
)


def test_the_debug_build_ends_waits_and_names_them(tmp_path: Path) -> None:
    """VSSN_DEBUG_POLLS: each wait gives up after so many polls, with its own words; else none of them."""
    source = tmp_path / "polls.cu"
    source.write_text(POLLS)
    for flags, found in (["-DVSSN_DEBUG_POLLS=1000"], True), ([], False):
        target = tmp_path / "polls.ptx"
        command = [cuda_resources.nvcc() or "nvcc", *COMMAND[1:], *flags, "-arch=sm_90a", "-ptx", "-o", str(target)]
        subprocess.run([*command, str(source)], cwd=ROOT, check=True)
        text = target.read_text()
        assert ("__assertfail" in text or "__assert_fail" in text) == found
        words = bytes(
            int(n) for n in re.findall(r"\b(\d{1,3})\b", " ".join(re.findall(r"\{([\d, ]+)\}", text))) if int(n) < 256
        )
        for what in WAITS:
            assert (what in words) == found, what
