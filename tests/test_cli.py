"""The command: what it prints, what it writes, and one line with exit code 2 for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vssn.cli import main
from vssn.training import TrainingModule
from vssn_kernels.version import __version__

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "data": {"set": "pendulum", "num_train": 6, "num_valid": 3, "num_test": 3, "num_frames": 4, "batch_size": 3},
    "model": {"hidden_size": 4, "latent_size": 2, "noise_size": 1, "control": "external"},
    "training": {"max_epochs": 2, "accelerator": "cpu"},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return str(path)


@pytest.fixture(scope="module")
def run(config: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["fit", "--config", config, "--output", str(folder)]) == 0
    return folder


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vssn: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_fit_reports_the_best_epoch_and_both_scores(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(["fit", "--config", config, "--output", str(folder), "--set", "training.max_epochs=1"]) == 0
    first = capsys.readouterr().out
    assert f"best epoch 1: {folder / 'best.ckpt'}" in first
    assert first.index("\nvalidation\n") < first.index("\ntest\n")
    assert first.count("micro") == first.count("macro") == 2
    assert main(["fit", "--config", config, "--output", str(folder), "--resume"]) == 0
    second = capsys.readouterr().out
    assert "epoch   2" in second
    assert "epoch   1" not in second


def test_evaluate_prints_the_scores_of_fit(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "scores.json"
    assert main(["evaluate", str(run / "best.ckpt"), "--json", str(target)]) == 0
    out = capsys.readouterr().out
    scores = json.loads(target.read_text())
    assert scores["split"] == "test"
    assert (scores["bound"], scores["particles"], scores["seed"]) == ("elbo", 1, 0)
    assert (scores["sequences"], scores["frames"]) == (3, 12)
    assert out.splitlines()[2].split() == ["micro", f"{scores['micro']:.4f}", f"{scores['micro_without_first']:.4f}"]
    assert out.splitlines()[3].split() == ["macro", f"{scores['macro']:.4f}", f"{scores['macro_without_first']:.4f}"]
    assert out.splitlines()[5].split() == [f"{scores['kl_z']:.4f}", f"{scores['kl_w']:.4f}"]


@pytest.mark.parametrize("bound", ["iwae", "fivo"])
def test_evaluate_an_importance_weighted_bound(
    bound: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "scores.json"
    evaluate = ["evaluate", str(run / "best.ckpt"), "--bound", bound, "--particles", "7", "--json", str(target)]
    tables = []
    for more in (["--memory", "64"], ["--memory", "2", "--batch-size", "1"], ["--seed", "3"]):
        assert main([*evaluate, *more]) == 0
        tables.append(capsys.readouterr().out.splitlines())
        scores = json.loads(target.read_text())
        assert (scores["bound"], scores["particles"], scores["frames"], scores["sequences"]) == (bound, 7, 12, 3)
        row = ["micro", f"{scores['micro']:.4f}", f"{scores['micro_without_first']:.4f}"]
        assert tables[-1][1].startswith(f"{bound.upper()}-7, nats per frame")
        assert tables[-1][2].split() == row
        assert tables[-1][-1] == "3 sequences, 12 frames"
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]


def test_a_memory_limit_that_does_not_suffice_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate = ("evaluate", str(run / "best.ckpt"), "--bound", "fivo", "--particles", "100000", "--memory", "1")
    assert "memory must be at least" in error_of(capsys, *evaluate)


def test_evaluate_another_split_with_samples(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run / "last.ckpt"), "--split", "train", "--particles", "2"]) == 0
    assert "pendulum, train\n" in (out := capsys.readouterr().out)
    assert "6 sequences, 24 frames" in out


def test_mistakes_are_one_line(config: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ("fit", "--output", str(tmp_path / "new"), "--config")
    assert "there is no such file" in error_of(capsys, *fit, str(tmp_path / "no.yaml"))
    assert "did you mean max_epochs?" in error_of(capsys, *fit, config, "--set", "training.max_epoch=1")
    assert "no data folder for JSB_Chorales" in error_of(capsys, *fit, "jsb", "--data", str(tmp_path / "absent"))
    assert "data.folder: unknown key" in error_of(capsys, *fit, config, "--data", str(tmp_path))
    assert "holds no last.ckpt" in error_of(capsys, *fit, config, "--resume")
    assert not (tmp_path / "new").exists()
    assert "holds a run already" in error_of(capsys, "fit", "--config", config, "--output", str(run))

    assert "there is no such file" in error_of(capsys, "evaluate", str(tmp_path / "no.ckpt"))
    cut_short = tmp_path / "short.ckpt"
    cut_short.write_bytes((run / "best.ckpt").read_bytes()[:2000])
    assert "truncated" in error_of(capsys, "evaluate", str(cut_short))
    best = str(run / "best.ckpt")
    assert "is simulated and has no folder" in error_of(capsys, "evaluate", best, "--data", str(tmp_path))
    assert "there is no folder" in error_of(capsys, "evaluate", best, "--json", str(tmp_path / "a" / "b.json"))


def test_truncated_music_is_one_line_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "JSB_Chorales.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    output = tmp_path / "run"
    message = error_of(capsys, "fit", "--config", "jsb", "--data", str(tmp_path), "--output", str(output))
    assert "truncated or corrupt" in message
    assert not output.exists()


@pytest.mark.parametrize("value", ["0", "-1", "many"])
@pytest.mark.parametrize("option", ["particles", "memory", "batch-size"])
def test_counts_must_be_whole_numbers(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "best.ckpt", f"--{option}={value}"])
    assert caught.value.code == 2
    assert f"expected a whole number of at least 1, got '{value}'" in capsys.readouterr().err


def test_interrupt_says_what_is_kept(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = TrainingModule.training_step
    stop_at = 0

    def interrupted(module: TrainingModule, *arguments: object) -> None:
        if module.global_step == stop_at:
            raise KeyboardInterrupt
        step(module, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(TrainingModule, "training_step", interrupted)
    arguments = ["fit", "--config", config, "--output", str(tmp_path / "run")]
    assert main(arguments) == 130
    assert capsys.readouterr().err == "vssn: interrupted; nothing is kept\n"
    assert not (tmp_path / "run").exists()
    stop_at = 3
    assert main(arguments) == 130
    last = tmp_path / "run" / "last.ckpt"
    assert capsys.readouterr().err == f"vssn: interrupted; {last} is kept, continue with --resume\n"
    assert last.is_file()


def test_version_and_info(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"vssn {__version__}\n"
    assert main(["info"]) == 0
    assert "backend reference: available" in capsys.readouterr().out


def test_without_the_training_extra_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['pydantic'] = None; from vssn.cli import main; "
        "sys.exit(main(['fit', '--config', 'jsb']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "vssn: error: pydantic is not installed; install what training needs: pip install 'vssn[train]'\n"
    )


def test_a_reader_that_goes_is_no_error() -> None:
    command = [sys.executable, "-c", "import sys; from vssn.cli import main; input(); sys.exit(main(['info']))"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 141
