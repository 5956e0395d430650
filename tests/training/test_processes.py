"""Several processes compute what one does: each batch is shared, and its gradients are summed."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_training import music_folder

from vssn.cli import main
from vssn.data.batching import SequenceBatch
from vssn.errors import ConfigError
from vssn.training import processes
from vssn.training.checkpoints import read_checkpoint
from vssn.training.fit import fit
from vssn.training.processes import World, first_node, share, share_of_noise, started
from vssn.training.sections import TrainingSection
from vssn.utils.command import TERMINATED, raising_terminated

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever started these tests."""
    for name in (*LAUNCHERS, *(name for name in os.environ if name.startswith("SLURM_"))):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(ROOT)  # for `python -m vssn`
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven sequences of 1 to 12 frames, three, and two."""
    return music_folder(tmp_path_factory.mktemp("music"))


def written(
    music: Path,
    path: Path,
    *,
    data: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    **training: Any,
) -> Path:
    settings = {
        "data": {"set": "jsb", "folder": str(music), "batch_size": 3, "transpose": 3} | (data or {}),
        "model": {"hidden_size": 5, "latent_size": 3, "noise_size": 2, "universal": "gaussian"} | (model or {}),
        "training": {"max_epochs": 2, "accelerator": "cpu", "precision": "64-true"} | training,
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def assert_same_run(one: Path, other: Path, tolerance: float) -> None:
    """But for rounding: the metrics, the weights, and the moments of their gradients."""
    tables = []
    for folder in (one, other):
        with open(folder / "metrics.csv", newline="") as file:
            tables.append([{k: float(v) for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)])
    assert len(tables[0]) == len(tables[1])
    for first, second in zip(*tables, strict=True):
        assert second == pytest.approx(first, rel=tolerance, abs=tolerance)
    first, second = (read_checkpoint(folder / "last.ckpt") for folder in (one, other))
    for name, weight in first["state_dict"].items():
        torch.testing.assert_close(second["state_dict"][name], weight, rtol=tolerance, atol=tolerance, msg=name)
    moments = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (first, second)]
    assert moments[0].keys() == moments[1].keys()
    for index, entry in moments[0].items():
        for name, value in entry.items():
            found = moments[1][index][name]
            torch.testing.assert_close(found, value, rtol=tolerance, atol=tolerance, msg=f"{index} {name}")


# Two processes against one


@pytest.mark.slow
@pytest.mark.parametrize(("chunk_length", "dropout"), [(None, 0.0), (4, 0.0), (4, 0.3)])
def test_two_processes_train_as_one(chunk_length: int | None, dropout: float, music: Path, tmp_path: Path) -> None:
    """Of unequal lengths, in chunks of which one process has more; the last batch has one sequence for two."""
    config = written(music, tmp_path / "config.yaml", chunk_length=chunk_length, coordinated_dropout=dropout)
    arguments = ["fit", "--config", str(config), "--output"]
    assert main([*arguments, str(tmp_path / "one")]) == 0
    assert main([*arguments, str(tmp_path / "two"), "--devices", "2"]) == 0
    assert_same_run(tmp_path / "one", tmp_path / "two", 1e-10)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        *("best.ckpt", "last.ckpt", "config.yaml", "metrics.csv", "tensorboard")
    }
    assert len(list((tmp_path / "two" / "tensorboard").glob("events*"))) == 1


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("model", "training"),
    [
        ({"objective": "fivo", "particles": 3}, {"chunk_length": 4}),
        ({"objective": "nasmc", "particles": 3}, {}),
        ({}, {"chunk_length": 4, "constraint": {"target": -60.0, "per": "frame"}}),
    ],
    ids=["fivo", "nasmc", "constraint"],
)
def test_two_processes_have_the_particles_and_the_multiplier_of_one(
    model: dict[str, Any], training: dict[str, Any], music: Path, tmp_path: Path
) -> None:
    config = written(music, tmp_path / "config.yaml", model=model, max_epochs=1, **training)
    for count in ("1", "2"):
        assert main(["fit", "--config", str(config), "--output", str(tmp_path / count), "--devices", count]) == 0
    assert_same_run(tmp_path / "1", tmp_path / "2", 1e-10)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("dropout", [0.3, 0.0])
def test_the_gradients_of_two_processes_are_those_of_one(dropout: float, music: Path, tmp_path: Path) -> None:
    """In float32, of one update of the joint batch: AdamW's first moment is a tenth of them. The entries that
    coordinated dropout hides are the same too."""
    training = {"precision": "32-true", "max_epochs": 1, "gradient_clip_norm": None, "coordinated_dropout": dropout}
    config = written(music, tmp_path / "config.yaml", data={"batch_size": 7}, **training)
    found = []
    for count in (1, 2):
        output = tmp_path / str(count)
        assert main(["fit", "--config", str(config), "--output", str(output), "--devices", str(count)]) == 0
        state = read_checkpoint(output / "last.ckpt")["optimizer_states"][0]["state"]
        assert all(int(entry["step"]) == 1 for entry in state.values())
        found.append({index: 10 * entry["exp_avg"] for index, entry in state.items()})
    one, two = found
    assert one.keys() == two.keys()
    scale = max(float(gradient.abs().max()) for gradient in one.values())
    assert scale > 0.01
    for index, gradient in one.items():
        torch.testing.assert_close(two[index], gradient, rtol=0, atol=1e-6 * scale, msg=str(index))


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(music: Path, tmp_path: Path) -> None:
    config = written(music, tmp_path / "config.yaml")
    arguments = ["fit", "--config", str(config), "--output"]
    assert main([*arguments, str(tmp_path / "one")]) == 0
    parts = [*arguments, str(tmp_path / "parts")]
    assert main([*parts, "--devices", "2", "--set", "training.max_epochs=1"]) == 0
    assert main([*parts, "--devices", "2", "--resume"]) == 0
    assert_same_run(tmp_path / "one", tmp_path / "parts", 1e-10)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def srun(rank: int) -> dict[str, str]:
    """What srun sets for two tasks on two nodes, both of them here."""
    return {
        **{"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_PROCID": str(rank), "SLURM_LOCALID": "0"},
        **{"SLURM_NODEID": str(rank), "SLURM_JOB_ID": "12", "SLURM_STEP_NODELIST": "localhost"},
    }


@pytest.mark.slow
def test_srun_and_torchrun_start_them_too(music: Path, tmp_path: Path) -> None:
    config = written(music, tmp_path / "config.yaml", max_epochs=1)
    arguments = ["vssn", "fit", "--config", str(config)]
    assert main([*arguments[1:], "--output", str(tmp_path / "one")]) == 0
    port = {"MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", *arguments, "--output", str(tmp_path / "srun"), "--nodes", "2"]
    running = [subprocess.Popen(command, env=os.environ | srun(rank) | port) for rank in range(2)]
    try:
        assert [process.wait(300) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    assert_same_run(tmp_path / "one", tmp_path / "srun", 1e-10)
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    output = ["--output", str(tmp_path / "torchrun"), "--devices", "2"]
    subprocess.run([sys.executable, "-m", *launcher, *arguments, *output], check=True, timeout=300)
    assert_same_run(tmp_path / "one", tmp_path / "torchrun", 1e-10)


@pytest.mark.slow
def test_a_mistake_is_one_line_whoever_finds_it(music: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = written(tmp_path / "absent", tmp_path / "config.yaml")
    output = tmp_path / "run"
    assert main(["fit", "--config", str(config), "--output", str(output), "--devices", "2"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("vssn: error: no data folder")
    assert not output.exists()


@pytest.mark.parametrize(("code", "expected"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 128 + signal.SIGKILL)])
def test_the_first_to_fail_ends_all(
    code: str, expected: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And is heard where the first process, which speaks, waits for it."""
    program = (
        "import os, sys, time\n"
        f"if os.environ['RANK'] == '1': print('out of order', file=sys.stderr, flush=True); {code}\n"
        "time.sleep(600)"
    )
    starts, own = subprocess.Popen, []

    def start(command: list[str], **options: Any) -> Any:
        own.append(starts([sys.executable, "-c", program], **options))
        return own[-1]

    monkeypatch.setattr(processes.subprocess, "Popen", start)
    assert processes.launch(3, []) == expected
    assert all(process.poll() is not None for process in own)
    assert capfd.readouterr().err == "out of order\n"


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, TERMINATED), (signal.SIGINT, TERMINATED)])
def test_a_signal_to_the_first_alone_ends_all(number: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a scheduler and `kill` send it, not as a terminal does."""
    starts, own = subprocess.Popen, []

    def start(command: list[str], **options: Any) -> Any:
        own.append(starts([sys.executable, "-c", "import time; time.sleep(600)"], **options))
        return own[-1]

    monkeypatch.setattr(processes.subprocess, "Popen", start)
    monkeypatch.setattr(processes, "GRACE", 1.0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        timer = threading.Timer(0.5, os.kill, (os.getpid(), number))
        timer.start()
        with raising_terminated():
            assert processes.launch(2, []) == expected
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert [process.poll() for process in own] == [-signal.SIGTERM] * 2


# Who is there


def test_one_process_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (srun(1) | {"RANK": "1", "WORLD_SIZE": "4"}).items():
        monkeypatch.setenv(name, value)
    assert started(TrainingSection()) == World(0, 1)


def test_the_world_is_what_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    section = TrainingSection(devices=2, nodes=2)
    assert started(section) is None
    monkeypatch.setenv("SLURM_PROCID", "0")  # of a batch script, which srun has not started
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert started(section) is None
    slurm = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}
    for name, value in (slurm | {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "gpu[07-08]"}).items():
        monkeypatch.setenv(name, value)
    assert started(section) == World(3, 4, 1, 1, "gpu07", 15000 + 3456)
    with pytest.raises(ConfigError, match=r"^training\.devices: .* as were started, 4, got 2 on 1 nodes"):
        started(TrainingSection(devices=2))
    values = ("2", "4", "0", "1", "10.0.0.1", "29500")
    for name, value in zip(LAUNCHERS, values, strict=True):
        monkeypatch.setenv(name, value)
    assert started(section) == World(2, 4, 0, 1, "10.0.0.1", 29500)


def test_python_says_how_to_start_them(tmp_path: Path) -> None:
    settings = {
        "model": {"hidden_size": 3, "latent_size": 2},
        "training": {"output": str(tmp_path / "run"), "devices": 2, "accelerator": "cpu"},
    }
    x = torch.rand(2, 3, 4)
    with pytest.raises(ConfigError, match="2 processes, got one; start them with torchrun --nproc-per-node 2,"):
        fit(settings, (x, x, x))
    settings["training"] |= {"nodes": 3}  # type: ignore[operator]
    with pytest.raises(ConfigError, match="6 processes, got one; start them with torchrun --nnodes 3 --nproc"):
        fit(settings, (x, x, x))


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("host", "host"),
        ("a,b", "a"),
        ("gpu[03-05,9],other", "gpu03"),
        ("gpu[7]", "gpu7"),
        ("n[1,5]-ib,m", "n1-ib"),
        ("10.0.0.1", "10.0.0.1"),
    ],
)
def test_the_first_node_of_a_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_the_shares_of_a_batch_are_all_of_it() -> None:
    lengths = torch.tensor([6, 5, 3, 2, 1])
    before = SequenceBatch(torch.rand(4, 5, 2), torch.tensor([1, 4, 2, 3, 1]))
    batch = SequenceBatch(torch.rand(6, 5, 2), lengths, torch.rand(6, 5, 1), before)
    noise = torch.rand(6, 5, 3), torch.rand(6, 5, 0)
    for size in (1, 2, 3, 7):
        seen = 0
        for rank in range(size):
            world = World(rank, size)
            own = share(batch, world)
            assert own.u is not None
            assert own.before is not None
            assert own.before.lengths.tolist() == before.lengths[rank::size].tolist()
            assert own.lengths.tolist() == lengths[rank::size].tolist()
            steps = max(own.lengths.tolist(), default=0)
            for whole, part in ((batch.x, own.x), (batch.u, own.u), (noise[0], share_of_noise(noise, own, world)[0])):
                assert part.equal(whole[: steps if size > 1 else 6, rank::size])  # type: ignore[index]
            seen += len(own.lengths)
        assert seen == 5
