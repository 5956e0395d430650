"""Reproduction: runs that are skipped, resumed and tried again; what a table measures; a report of what is on disk."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
import yaml
from foreign_model import Twin

from vssn.cli import main
from vssn.data.batching import SequenceDataset
from vssn.errors import ConfigError
from vssn.experiments import runner as module
from vssn.experiments import tasks
from vssn.experiments.jobs import Job, jobs_of
from vssn.experiments.report import write_report
from vssn.experiments.runner import Settings, reproduce
from vssn.experiments.tasks import NAMES
from vssn.experiments.tasks.base import Effort, Entry, first_sequences
from vssn.experiments.tasks.pendulum import draw_pendulum
from vssn.experiments.tasks.registry import TASKS
from vssn.models.registry import MODELS
from vssn.training.config import check_config, load_config, packaged_configs
from vssn.training.fit import fit
from vssn.training.module import TrainingModule

MODEL = {"hidden_size": 4, "latent_size": 2, "noise_size": 1, "mlp_size": 4}
PENDULUM_DATA = {"set": "pendulum", "batch_size": 20}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The pendulum's table with two small models of two epochs."""
    entries = []
    for label, noise in (("VSSN", 1), ("SRNN", 0)):
        path = tmp_path / f"{label}.yaml"
        model = MODEL | {"noise_size": noise, "control": "external"}
        path.write_text(yaml.safe_dump({"data": PENDULUM_DATA, "model": model, "training": {"accelerator": "cpu"}}))
        entries.append(Entry("pendulum", label, str(path)))
    task = TASKS["pendulum"]._replace(entries=tuple(entries), draw=lambda *_: [])
    monkeypatch.setitem(TASKS, "pendulum", task)
    return "pendulum"


def settings_of(tmp_path: Path, **changes: Any) -> Settings:
    return Settings(**({"output": tmp_path / "runs", "budget": "quick"} | changes))


def scores(settings: Settings, table: str) -> dict[str, Any]:
    """By run, without what differs from call to call."""
    found = {}
    for path in sorted((settings.output / settings.budget / table).glob("*/score.json")):
        record = json.loads(path.read_text())
        found[path.parent.name] = {
            key: record[key] for key in ("metrics", "seed", "model", "set", "best_epoch", "epochs", "config")
        }
    return found


def test_a_table_from_nothing_to_its_report(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, table, TASKS[table]._replace(draw=draw_pendulum))
    settings, lines = settings_of(tmp_path, seeds=2), []
    assert reproduce([table], settings, lines.append) == 0
    assert list(scores(settings, table)) == [
        "pendulum-srnn-0",
        "pendulum-srnn-1",
        "pendulum-vssn-0",
        "pendulum-vssn-1",
    ]
    starts = [line for line in lines if re.match(r"\[\d/4\] ", line)]
    assert starts[0].startswith("[1/4] pendulum: VSSN on pendulum, seed 0: ")
    assert starts[-1].startswith("[4/4] pendulum: SRNN on pendulum, seed 1: filtering_sin ")
    figures = [Path(line.removeprefix("figure: ")) for line in lines if line.startswith("figure: ")]
    assert [path.name for path in figures] == [
        "pendulum-training.png",
        "pendulum-filtering.png",
        "pendulum-smoothing.png",
    ]
    assert all(path.is_file() for path in figures)

    page = tmp_path / "RESULTS.md"
    absent = write_report(page, settings)
    assert absent == [name for name in NAMES if name != "pendulum"]
    text = page.read_text()
    values = [scores(settings, table)[f"pendulum-vssn-{seed}"]["metrics"]["smoothing_sin"] for seed in (0, 1)]
    cell = f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    row = next(line for line in text.splitlines() if line.startswith("| **VSSN** |"))
    assert cell in row
    gap = np.mean(values) - 0.973
    verdict = "ahead" if gap > 0 else "behind"
    assert f"| sin φ, smoothing | {cell} **VSSN** | .973 *VSSN* (published) | {verdict} by {abs(gap):.3f} | 2 |" in text
    sentence = next(line for line in text.splitlines() if "best comparable published figure, *VSSN*" in line)
    assert f"sin φ (smoothing) by {abs(gap):.3f}" in sentence
    assert "- Each figure is of 2 seeds." in text
    assert "| *DKF* (Karl et al. 2016) | — | — | — | .929 | .979 | .035 |" in text
    assert f"`vssn reproduce pendulum --budget quick --seeds 2 --threads {torch.get_num_threads()}`" in text
    assert re.search(r"^Not run: .*\*\*VSSN\*\*, .* on JSB chorales, ", text, re.MULTILINE)
    assert "| [Polyphonic music](#polyphonic-music) | not run | — | — | — | — |" in text
    assert (tmp_path / "RESULTS-pendulum-filtering.png").is_file()
    assert "![Pendulum: filtering](RESULTS-pendulum-filtering.png)" in text
    assert not (tmp_path / "results").exists()
    write_report(page, settings)
    assert page.read_text() == text


def test_what_is_done_is_skipped(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, lines = settings_of(tmp_path, only=("vssn",)), []
    reproduce([table], settings, lines.append)
    before = scores(settings, table)
    monkeypatch.setattr(module, "fit", lambda *_, **__: pytest.fail("trained again"))
    lines.clear()
    assert reproduce([table], settings, lines.append) == 0
    assert lines[0] == "[1/1] pendulum: VSSN on pendulum, seed 0: done before"
    assert scores(settings, table) == before


def test_interrupted_and_run_again_equals_straight(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped within the second model's second epoch, and once more while the second model is scored."""
    configure = Job.configure

    def two_epochs(*arguments: Any) -> Any:
        config = configure(*arguments)
        training = config.training.model_copy(update={"max_epochs": 2, "max_minutes": None})
        return config.model_copy(update={"training": training})

    monkeypatch.setattr(Job, "configure", two_epochs)
    straight, parts = settings_of(tmp_path / "straight"), settings_of(tmp_path / "parts")
    reproduce([table], straight, lambda _: None)

    step, steps = TrainingModule.training_step, []

    def interrupted(training: TrainingModule, *arguments: Any) -> None:
        steps.append(training.global_step)
        if len(steps) == 8:
            raise KeyboardInterrupt
        step(training, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            reproduce([table], parts, lambda _: None)
    assert list(scores(parts, table)) == ["pendulum-vssn-0"]
    assert steps == [0, 1, 2, 3, 0, 1, 2, 3]

    def interrupted_score(*_: Any) -> Any:
        raise KeyboardInterrupt

    resumed = []
    with monkeypatch.context() as patch:
        patch.setattr(module, "fit", lambda config, resume: (resumed.append(resume), fit(config, resume=resume)))
        patch.setitem(TASKS, table, TASKS[table]._replace(score=interrupted_score))
        with pytest.raises(KeyboardInterrupt):
            reproduce([table], parts, lambda _: None)
    assert resumed == [True]
    with monkeypatch.context() as patch:
        patch.setattr(module, "fit", lambda *_, **__: pytest.fail("trained again"))
        assert reproduce([table], parts, lambda _: None) == 0
    assert scores(parts, table) == scores(straight, table)


@pytest.mark.parametrize("ended", [False, True], ids=["cut short", "stopped early"])
def test_a_run_that_a_limit_ended_goes_on_or_is_done(
    ended: bool, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within its first epoch, of which it keeps the best.ckpt alone; and before it was written that it is done."""
    configure = Job.configure

    def limited(*arguments: Any) -> Any:
        config = configure(*arguments)
        more = {"max_epochs": 9, "max_minutes": None, "early_stopping_patience": 1, "learning_rate": 1e-30}
        return config.model_copy(update={"training": config.training.model_copy(update=more)})

    monkeypatch.setattr(Job, "configure", limited)
    settings, resumed = settings_of(tmp_path, only=("vssn",)), []
    assert reproduce([table], settings, lambda _: None) == 0
    folder = settings.output / "quick" / table / "pendulum-vssn-0"
    for name in ("trained.json", "score.json", *(() if ended else ("last.ckpt",))):
        (folder / name).unlink()
    monkeypatch.setattr(module, "fit", lambda config, resume: (resumed.append(resume), fit(config, resume=resume)))
    assert reproduce([table], settings, lambda _: None) == 0
    assert resumed == ([] if ended else [True])


def test_what_cannot_be_run_is_said_and_tried_again(table: str, tmp_path: Path) -> None:
    config = Path(TASKS[table].entries[1].config)
    content = config.read_text()
    config.write_text(content.replace("noise_size: 0", "noise_size: lots"))
    settings, lines = settings_of(tmp_path), []
    assert reproduce([table], settings, lines.append) == 1
    assert any("SRNN on pendulum, seed 0: failed: " in line for line in lines)
    page = tmp_path / "RESULTS.md"
    write_report(page, settings)
    assert re.search(r"Not run: \*\*SRNN\*\* on pendulum \(.*noise_size: expected a valid integer", page.read_text())
    config.write_text(content)
    assert reproduce([table], settings, lambda _: None) == 0
    write_report(page, settings)
    assert "**SRNN** on pendulum (" not in page.read_text()


def test_a_run_made_with_other_settings_is_not_taken_for_this_one(table: str, tmp_path: Path) -> None:
    settings, lines = settings_of(tmp_path, only=("vssn",)), []
    reproduce([table], settings, lambda _: None)
    config = Path(TASKS[table].entries[0].config)
    config.write_text(config.read_text().replace("latent_size: 2", "latent_size: 3"))
    assert reproduce([table], settings, lines.append) == 1
    assert "model.latent_size is 3, but " in lines[0]
    assert "was made with 2; remove that folder" in lines[0]


@pytest.mark.parametrize("kept", [("best.ckpt", "last.ckpt", "trained.json"), ("best.ckpt", "last.ckpt")])
def test_a_model_of_other_settings_is_neither_scored_nor_trained_on(
    kept: tuple[str, ...], table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, lines = settings_of(tmp_path, only=("vssn",)), []
    reproduce([table], settings, lambda _: None)
    folder = settings.output / "quick" / table / "pendulum-vssn-0"
    for path in folder.iterdir():
        if path.is_file() and path.name not in kept:
            path.unlink()
    config = Path(TASKS[table].entries[0].config)
    config.write_text(config.read_text().replace("accelerator: cpu", "accelerator: cpu\n  weight_decay: 0.25"))
    monkeypatch.setattr(module, "fit", lambda *_, **__: pytest.fail("trained"))
    assert reproduce([table], settings, lines.append) == 1
    assert "training.weight_decay is 0.25, but " in lines[1]
    assert not (folder / "score.json").exists()


def test_the_report_leaves_out_runs_of_other_settings(table: str, tmp_path: Path) -> None:
    settings, page = settings_of(tmp_path, only=("vssn",)), tmp_path / "RESULTS.md"
    reproduce([table], settings, lambda _: None)
    config = Path(TASKS[table].entries[0].config)
    config.write_text(config.read_text().replace("latent_size: 2", "latent_size: 3"))
    assert table in write_report(page, settings)
    assert "**VSSN** on pendulum (model.latent_size is 3, but pendulum-vssn-0 was made with 2" in page.read_text()
    assert "| **VSSN** |" not in page.read_text()


def test_a_page_keeps_its_records_for_the_next_one(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One model's run is on this machine, the other's was on one that is gone."""
    quick = settings_of(tmp_path)
    reproduce([table], quick, lambda _: None)
    (quick.output / "quick").rename(quick.output / "full")
    here = quick.output / "full" / table
    for path in here.glob("*/score.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"budget": "full"}))
    configure = Job.configure
    monkeypatch.setattr(Job, "configure", lambda job, settings: configure(job, quick))
    settings, page = settings_of(tmp_path, budget="full"), tmp_path / "RESULTS.md"
    (tmp_path / "results" / "runs").mkdir(parents=True)  # the page is to keep them
    write_report(page, settings)
    kept = tmp_path / "results" / "runs" / table
    names = ["pendulum-srnn-0.csv", "pendulum-srnn-0.json", "pendulum-vssn-0.csv", "pendulum-vssn-0.json"]
    assert sorted(path.name for path in kept.iterdir()) == names
    score = here / "pendulum-vssn-0" / "score.json"
    assert json.loads((kept / "pendulum-vssn-0.json").read_text()) == json.loads(score.read_text())

    text, curves = page.read_text(), tmp_path / "results" / "pendulum-training.png"
    drawn = curves.read_bytes()
    assert "![Pendulum: training](results/pendulum-training.png)" in text
    shutil.rmtree(here / "pendulum-srnn-0")
    curves.unlink()
    write_report(page, settings)
    assert page.read_text() == text
    assert curves.read_bytes() == drawn  # both runs are in it, that which is gone too
    curves.write_bytes(b"of before")
    (kept / "pendulum-srnn-0.csv").unlink()
    write_report(page, settings)
    assert curves.read_bytes() == b"of before"  # which shows more than one run of two
    record = json.loads(score.read_text())
    record["metrics"]["smoothing_sin"] = 0.125
    score.write_text(json.dumps(record))
    write_report(page, settings)
    assert re.search(r"\| \*\*VSSN\*\* \|.*\| 0\.125 \|", page.read_text())  # what is here goes before what was kept
    assert json.loads((kept / "pendulum-vssn-0.json").read_text()) == record

    config = Path(TASKS[table].entries[1].config)
    config.write_text(config.read_text().replace("latent_size: 2", "latent_size: 3"))
    write_report(page, settings)
    assert "**SRNN** on pendulum (model.latent_size is 3, but pendulum-srnn-0 was made with 2" in page.read_text()


def test_a_setting_that_came_after_a_record_counts_as_its_default(table: str, tmp_path: Path) -> None:
    settings, lines = settings_of(tmp_path, only=("vssn",)), []
    reproduce([table], settings, lambda _: None)
    score = settings.output / "quick" / table / "pendulum-vssn-0" / "score.json"
    record = json.loads(score.read_text())
    del record["config"]["model"]["noise_smoothing"]
    score.write_text(json.dumps(record))
    assert reproduce([table], settings, lines.append) == 0
    config = Path(TASKS[table].entries[0].config)
    config.write_text(config.read_text().replace("noise_size: 1", "noise_size: 1\n  noise_smoothing: true"))
    assert reproduce([table], settings, lines.append) == 1
    assert "model.noise_smoothing is True, but " in lines[-1]
    assert "was made with False" in lines[-1]


def test_a_run_that_stopped_before_its_first_last_checkpoint_starts_anew(table: str, tmp_path: Path) -> None:
    straight, parts = (
        settings_of(tmp_path / "straight", only=("vssn",)),
        settings_of(tmp_path / "parts", only=("vssn",)),
    )
    for settings in (straight, parts):
        reproduce([table], settings, lambda _: None)
    folder = parts.output / "quick" / table / "pendulum-vssn-0"
    for name in ("last.ckpt", "trained.json", "score.json", "metrics.csv"):
        (folder / name).unlink()
    assert reproduce([table], parts, lambda _: None) == 0
    assert scores(parts, table) == scores(straight, table)


def test_a_run_that_another_process_makes_is_left_to_it(table: str, tmp_path: Path) -> None:
    settings, lines = settings_of(tmp_path), []
    folder = settings.output / "quick" / table / "pendulum-vssn-0"
    folder.mkdir(parents=True)
    code = (
        f"import filelock; lock = filelock.FileLock({str(folder / 'lock')!r}); lock.acquire()\n"
        "print('ready', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        assert reproduce([table], settings, lines.append) == 1
        other.communicate("done\n")
    assert any("seed 0: " in line and "another process is making this run" in line for line in lines)
    assert not (folder / "failed.json").exists()
    assert list(scores(settings, table)) == ["pendulum-srnn-0"]
    assert reproduce([table], settings, lambda _: None) == 0


def test_what_a_page_says_of_its_runs_is_theirs(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A quick report of one's own: nothing of the published page's runs, no folder that nobody asked for."""
    monkeypatch.chdir(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    assert (
        main(["reproduce", table, "--budget", "quick", "--only", "vssn", "--output", "runs", "--report", "my own.md"])
        == 0
    )
    assert {path.name for path in tmp_path.iterdir()} - before == {"runs", "my own.md"}
    figures = tmp_path / "runs" / "quick" / table / "figures"
    (figures / "pendulum-smoothing.png").write_bytes(b"drawn")
    assert main(["reproduce", "--budget", "quick", "--output", "runs", "--report", "my own.md"]) == 0
    assert {path.name for path in tmp_path.iterdir()} - before == {"runs", "my own.md", "my own-pendulum-smoothing.png"}
    text = Path("my own.md").read_text()
    assert "![Pendulum: smoothing](my%20own-pendulum-smoothing.png)" in text
    assert "(d and z: 6 for VSSN)" in text
    assert "fitted on the 40 training films, scored on the 10 test films" in text
    assert "Training: VSSN 1 epoch in batches of 20." in text
    for other in ("67", "131", "500", "250", "rebuilt", "100 particles", "200 test videos", "benchmarks/README.md"):
        assert other not in text, other


def test_a_model_without_the_sizes_of_a_vssn_stands_on_the_page(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside one that has them, and alone."""
    monkeypatch.setitem(MODELS, "twin", Twin)
    path = tmp_path / "twin.yaml"
    path.write_text(yaml.safe_dump({"data": PENDULUM_DATA, "model": {"name": "twin", "latent_size": 2, "width": 4}}))
    first = TASKS[table].entries[0]
    for entries, said in (((first,), "6 for VSSN"), ((), "—")):
        task = TASKS[table]._replace(
            entries=(*entries, Entry("pendulum", "twin", str(path))),
            score=lambda *_: dict.fromkeys(TASKS[table].headline, 1.0),
        )
        monkeypatch.setitem(TASKS, table, task)
        settings = settings_of(tmp_path, output=tmp_path / str(len(entries)))
        assert reproduce([table], settings, lambda _: None) == 0
        write_report(tmp_path / "page.md", settings)
        text = (tmp_path / "page.md").read_text()
        assert f"(d and z: {said})" in text
        assert "| **twin** | 1.000 |" in text


@pytest.mark.parametrize("count", [2, 7, None])
def test_the_first_sequences_keep_their_controls(count: int | None) -> None:
    dataset = SequenceDataset(torch.randn(3, 4, 5), torch.randn(3, 4, 2))
    first = first_sequences(dataset, count)
    assert len(first) == (2 if count == 2 else 3)
    for index in range(len(first)):
        for part, whole in zip(first[index], dataset[index], strict=True):
            assert part is not None
            assert part.equal(whole)


def test_a_record_of_another_effort_is_described_as_such(tmp_path: Path) -> None:
    """The project's own records, with other numbers in them."""
    root = Path(__file__).resolve().parents[2]
    shutil.copytree(root / "results" / "runs", tmp_path / "results" / "runs")
    for path in (tmp_path / "results" / "runs").rglob("*.json"):
        record = json.loads(path.read_text())
        record.pop("note", None)
        record["metrics"] |= {"particles": 7} if "particles" in record["metrics"] else {}
        record["metrics"] |= {"sequences": 3} if record["table"] == "balls" else {}
        record["settings"] |= {"seen": 5, "steps": 12, "pixels": 49, "frame_size": 80}
        path.write_text(json.dumps(record))
    write_report(tmp_path / "RESULTS.md", Settings(tmp_path / "no-runs"))
    text = (tmp_path / "RESULTS.md").read_text()
    for part in (
        *("IWAE with 7 particles, sum over", "IWAE-7 |", "IWAE-7, bits per sample", "2 to 100 of 3 test videos"),
        *("the mean of 12 frames predicted after 5 seen", "free-running, 12 frames |", "Frames of 80 samples"),
        *("summed over 49 pixels", "(49 pixels), 10 frames ahead of 5 seen"),
    ):
        assert part in text, part
    assert (tmp_path / "results" / "balls-rollout.png").is_file()  # the records tell it
    assert "rebuilt" not in text
    assert not re.search(r"IWAE with 10+ particles|IWAE-10", text)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_output_that_cannot_be_written_is_one_line(
    place: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["reproduce", "--budget", "quick", table, "--output", str(tmp_path / place)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"vssn: error: --output: cannot write .* \(.+\); name another place\n", captured.err)


@pytest.mark.parametrize("name", ["score.json", "trained.json", "figure.png", "report"])
def test_a_disk_that_fills_up_is_one_line(
    name: str, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device", str(tmp_path / name))

    write = Path.write_text
    monkeypatch.setattr(
        Path,
        "write_text",
        lambda path, *rest, **more: full() if path.name.startswith(f"{name}.") else write(path, *rest, **more),
    )
    monkeypatch.setattr("vssn.experiments.report_figures._copies", full if name == "report" else lambda *_, **__: set())
    if name == "figure.png":
        monkeypatch.setitem(TASKS, table, TASKS[table]._replace(draw=full))
    arguments = ["reproduce", "--budget", "quick", table, "--only", "vssn", "--output", str(tmp_path / "runs")]
    assert main([*arguments, "--report", str(tmp_path / "R.md")]) == 2
    option = "--report" if name == "report" else "--output"
    error = capsys.readouterr().err
    assert (
        error
        == f"vssn: error: {option}: cannot write {tmp_path / name} (No space left on device); name another place\n"
    )


def test_a_report_that_cannot_be_written_is_said_before_the_runs(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["reproduce", "--budget", "quick", table, "--output", str(tmp_path / "runs"), "--report"]
    for report, says in (
        (tmp_path / "no" / "R.md", "there is no folder"),
        (tmp_path, r"cannot write .*Is a directory"),
    ):
        assert main([*arguments, str(report)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert re.fullmatch(f"vssn: error: --report: {says}.*\n", captured.err)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"metrics": {}}'])
def test_a_damaged_record_is_named(
    content: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "runs" / "quick" / table / "pendulum-vssn-0" / "score.json"
    record.parent.mkdir(parents=True)
    record.write_text(content)
    arguments = [
        "reproduce",
        "--budget",
        "quick",
        "--output",
        str(tmp_path / "runs"),
        "--report",
        str(tmp_path / "R.md"),
    ]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert f"{record}: " in error
    assert error.count("\n") == 1


def test_only_takes_whole_parts_of_names(table: str, tmp_path: Path) -> None:
    def names(*only: str) -> list[str]:
        return [job.folder.name for job in jobs_of("music", settings_of(tmp_path, only=only, seeds=2))]

    assert names("jsb-vssn-0") == ["jsb-vssn-0"]
    assert names("jsb-vssn") == ["jsb-vssn-0", "jsb-vssn-1"]
    assert names("vssn_nade-1") == [f"{name}-vssn_nade-1" for name in ("jsb", "nottingham", "piano_midi", "musedata")]
    assert names("vss") == []


def test_names_that_are_unknown(table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"--only: no run's name has dkf in it; runs: pendulum-vssn-0, "):
        reproduce([table], settings_of(tmp_path, only=("dkf",)))
    for arguments, expected in ((["tables"], "got 'tables'"), ([], "got none")):
        assert main(["reproduce", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("vssn: error: TABLE: expected one of music, ")
        assert expected in error
        assert error.count("\n") == 1


def test_the_command(table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "RESULTS.md"
    arguments = ["reproduce", table, "--budget", "quick", "--output", str(tmp_path / "runs"), "--only", "vssn"]
    assert main([*arguments, "--threads", "1", "--report", str(page)]) == 0
    out = capsys.readouterr().out
    assert "[1/1] pendulum: VSSN on pendulum, seed 0: " in out
    assert out.splitlines()[-1].startswith(f"{page}; no runs of music, ")
    assert page.is_file()


# What the tables measure


def music_data(folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    content = {}
    for key, lengths in (("traindata", (9, 4)), ("validdata", (5,)), ("testdata", (6, 3, 2))):
        cells = np.empty((1, len(lengths)), dtype=object)
        for index, length in enumerate(lengths):
            cells[0, index] = (rng.random((length, 88)) < 0.1).astype(float)
        content[key] = cells
    scipy.io.savemat(folder / "JSB_Chorales.mat", content)
    return {"set": "jsb", "folder": str(folder)}


def chorale_data(folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    rolls = {f"bwv{number}": (rng.random((9, 88)) < 0.1).astype(np.uint8) for number in range(250, 262)}
    np.savez(folder / "bach_chorales.npz", **rolls)  # type: ignore[arg-type]
    return {"set": "jsb_eighths", "folder": str(folder)}


def speech_data(folder: Path) -> dict[str, Any]:
    soundfile = pytest.importorskip("soundfile", reason="reading speech needs soundfile")
    for number in range(10):
        noise = np.random.default_rng(number).normal(0, 900, 8000).astype(np.int16)
        soundfile.write(folder / f"{number}.wav", noise, 16000)
    return {"set": "blizzard", "folder": str(folder)}


DATA = {
    "music": music_data,
    "jsb_grid": chorale_data,
    "objectives": music_data,
    "speech": speech_data,
    "balls": lambda _: {"set": "balls", "num_train": 3, "num_valid": 2, "num_test": 3, "num_frames": 40},
    "pendulum": lambda _: {"set": "pendulum", "num_train": 20, "num_valid": 2, "num_test": 5},
    "world_model": lambda _: {"set": "pendulum", "num_train": 3, "num_valid": 2, "num_test": 4},
    "series": lambda _: {"set": "macro"},
    "demo": lambda _: {"set": "pendulum", "num_train": 3, "num_valid": 2, "num_test": 4},
}


@pytest.mark.parametrize("name", DATA)
def test_a_task_measures_what_its_section_shows(name: str, tmp_path: Path) -> None:
    data = DATA[name](tmp_path)
    real_valued = name in ("speech", "pendulum", "series")
    model = MODEL | {
        "likelihood": "gaussian" if real_valued else "bernoulli",
        "masked": name == "series",
        "control": "both" if name in ("pendulum", "world_model", "demo") else "previous",
    }
    training = {"output": str(tmp_path / "run"), "max_epochs": 1, "accelerator": "cpu"}
    config = check_config({"data": data, "model": model, "training": training}, "")
    fit(config)
    network = config.build_model()
    metrics = TASKS[name].score(network, config, Effort(particles=2, sequences=2))
    task = TASKS[name]
    shown = [column.metric for column in task.columns] + [detail.metric for detail in task.details]
    shown += [column.metric for table in task.tables for column in table.columns]
    beside = {row.prefix: [name for name in metrics if name.startswith(f"{row.prefix}_")] for row in task.baselines}
    assert all(beside.values()), beside
    assert set(shown) <= set(metrics)
    assert all(np.isfinite(metrics[metric]) for metric in shown)
    entry = task.entries[0]
    figures = TASKS[name].draw({(entry.set, entry.model): tmp_path / "run"}, tmp_path, None)
    assert figures
    assert all(path.stat().st_size > 5000 for path in figures)
    if name == "balls":
        assert metrics["rollout_mean"] == pytest.approx(np.mean(metrics["rollout"]))
        assert 5 < metrics["copy_error"] < 25  # a fact of the videos: near 11.8 over many


def test_every_entry_has_its_configuration() -> None:
    for table, task in TASKS.items():
        assert len({(entry.set, entry.model) for entry in task.entries}) == len(task.entries)
        for entry in task.entries:
            assert entry.set in task.sets
            assert entry.config in packaged_configs(), (table, entry)
            config = load_config(entry.config, entry.overrides)
            assert config.data.set == entry.set


TOSSES = """
from vssn.experiments.tasks.base import Column, Entry, Published, Task


def score(model, config, effort):
    return {"heads": model.x_size + 0.5, "particles": effort.particles}


def draw(runs, folder, data):
    (folder / "coin.png").write_bytes(b"drawn")
    return [folder / "coin.png"]


TASK = Task(
    name="tosses",
    title="Tosses of a coin",
    text="Heads of {test} films, {coins} coins each.",
    sets={"pendulum": "coins"},
    entries=(Entry("pendulum", "VSSN", "demo"),),
    score=score,
    draw=draw,
    headline=("heads",),
    columns=(Column("heads", "pendulum", "heads", 1, "heads"),),
    unit="heads of {coins} coins; more is better",
    better=1,
    published=(Published("Gambler", {"heads": "256.0"}, "a test"),),
    labels={"heads": "what lands upright of {coins} coins"},
    protocol={"Fair coins": "Nobody looked"},
    quick_data={"num_train": 20, "num_valid": 4, "num_test": 6},
    settings={"coins": 3},
)
"""


def test_a_task_is_one_file(tmp_path: Path) -> None:
    """The help, the runs, their records and the page take up a file that no other place names."""
    root = Path(__file__).resolve().parents[2]
    shutil.copytree(root / "vssn", tmp_path / "vssn", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "vssn" / "experiments" / "tasks" / "tosses.py").write_text(TOSSES)

    def vssn(*arguments: str) -> str:
        paths = os.pathsep.join((str(tmp_path), str(root)))
        result = subprocess.run(
            [sys.executable, "-m", "vssn", "reproduce", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": paths, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert re.search(
        "music, jsb_grid, objectives, speech, balls, pendulum, world_model, series, demo, .*tosses; several run in "
        "turn",
        vssn("--help"),
    )
    out = vssn("tosses", "--budget", "quick", "--output", "runs", "--report", "R.md")
    assert re.search(r"\[1/1\] tosses: VSSN on pendulum, seed 0: heads 256.5  \(", out)
    record = json.loads((tmp_path / "runs/quick/tosses/pendulum-vssn-0/score.json").read_text())
    assert record["settings"] == {"coins": 3}
    assert record["metrics"]["particles"] == 2
    text = (tmp_path / "R.md").read_text()
    for part in (
        "## Tosses of a coin\nHeads of 6 films, 3 coins each.\n",
        "| **VSSN** | 256.5 |",
        "| [Tosses of a coin](#tosses-of-a-coin): heads of 3 coins; more is better | heads | 256.5 **VSSN** | "
        "256.0 *Gambler* (published) | ahead by 0.5 | 1 |",
        "- **VSSN** against the best comparable published figure, *Gambler*: ahead on heads by 0.5.",
        "- **heads**: what lands upright of 3 coins.",
        "- **Fair coins**: Nobody looked.",
        "| *Gambler* (a test) | 256.0 |",
        "![Tosses of a coin: coin](R-tosses-coin.png)",
    ):
        assert part in text, part


def test_every_task_goes_by_the_name_of_its_file() -> None:
    assert tuple(TASKS) == NAMES
    assert [task.name for task in TASKS.values()] == list(NAMES)
    folder = Path(tasks.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} == {*NAMES, "__init__", "base", "registry"}


def test_a_record_from_before_settings_were_kept_has_those_of_now(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    shutil.copytree(root / "results", tmp_path / "results")
    for path in (tmp_path / "results" / "runs").rglob("*.json"):
        record = json.loads(path.read_text())
        del record["settings"]
        path.write_text(json.dumps(record))
    write_report(tmp_path / "RESULTS.md", Settings(tmp_path / "no-runs"))
    assert (tmp_path / "RESULTS.md").read_text() == (root / "RESULTS.md").read_text()


def test_the_projects_page_follows_from_its_records(tmp_path: Path) -> None:
    """RESULTS.md is what the report makes of results/ alone: nothing typed, nothing of settings that have changed."""
    root = Path(__file__).resolve().parents[2]
    shutil.copytree(root / "results", tmp_path / "results")
    write_report(tmp_path / "RESULTS.md", Settings(tmp_path / "no-runs"))
    assert (tmp_path / "RESULTS.md").read_text() == (root / "RESULTS.md").read_text()
    assert "was made with" not in (root / "RESULTS.md").read_text()


def test_published_figures_are_those_of_the_tables() -> None:
    """A few of each table, typed from the sources a second time."""
    by_name = {row.model: row.values for row in TASKS["music"].published}
    assert by_name["DMM"] == {"nottingham": "~-2.770", "jsb": "~-6.388", "musedata": "~-6.831", "piano_midi": "~-7.835"}
    assert by_name["HMSBN"]["jsb"] == ">=-7.98"
    assert by_name["RNN-NADE"]["jsb"] == "~-5.19"
    assert {row.model: row.values["timit"] for row in TASKS["speech"].published}["RNN-Gauss"] == "-1900"
    assert {row.model: row.values["error"] for row in TASKS["balls"].published}["PGN (MSE)"] == "0.65 ± 0.11"
    velocities = {row.model: row.values["velocity"] for row in TASKS["pendulum"].published}
    assert velocities == {"VSSN": ".930", "DVBF-LL": ".916", "DKF": ".035"}
    for task in TASKS.values():
        keys = {column.published for column in task.columns if column.published}
        assert keys <= {key for row in task.published for key in row.values}
