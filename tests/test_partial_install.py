"""A package of an extra that is not installed is one line that names the extra, from Python and at the command line."""

from __future__ import annotations

import re
import subprocess
import wave
from pathlib import Path

import prepared_python
import pytest

from vssn.errors import DataError, PackageError
from vssn.utils.packages import needing

ROOT = Path(__file__).resolve().parent.parent
TRAIN = "install what training needs: pip install 'vssn[train]'"
SPEECH = "install what reading speech needs: pip install 'vssn[speech]'"
FILES = "install what reading data files needs: pip install 'vssn[files]'"
DOWNLOAD = "install what a download needs: pip install 'vssn[download]'"
SERIES = "install what reading the public series needs: pip install 'vssn[series]'"
CHORALES = "install what reading the chorales needs: pip install 'vssn[chorales]'"
FIT = "from vssn import fit"
# package: what the line ends with, the error in Python, what raises it there, a command
CASES = {
    "pydantic": (TRAIN, "PackageError", FIT, ["fit", "--config", "demo"]),
    "yaml": (TRAIN, "PackageError", "import vssn.training.checkpoints", ["evaluate", "best.ckpt"]),
    "pytorch_lightning": (TRAIN, "PackageError", FIT, ["fit", "--config", "demo"]),
    "tensorboard": (TRAIN, "PackageError", FIT, ["fit", "--config", "demo"]),
    "filelock": (TRAIN, "PackageError", FIT, ["fit", "--config", "demo"]),
    "matplotlib": (TRAIN, "PackageError", "import vssn.experiments.figures", ["reproduce", "demo"]),
    "scipy": (
        FILES,
        "DataError",
        "from vssn.data.formats import read; read('own/x.wav', sample_rate=4000)",
        ["init", "own/x.wav", "--set", "data.sample_rate=4000"],
    ),
    "soundfile": (
        SPEECH,
        "DataError",
        "from vssn.data.speech import load_speech; load_speech('blizzard', '.')",
        ["fit", "--config", "speech-vssn", "--set", "data.set=blizzard", "--data", "."],
    ),
    **{
        package: (
            FILES,
            "DataError",
            f"from vssn.data.formats import read; read('own/{name}')",
            ["init", f"own/{name}"],
        )
        for package, name in (
            ("pandas", "x.csv"),
            ("pyarrow", "x.parquet"),
            ("h5py", "x.h5"),
            ("symusic", "x.mid"),
            ("PIL", "x.gif"),
        )
    },
    "pooch": (
        DOWNLOAD,
        "DataError",
        "from vssn.data.download import download_music; download_music('.')",
        ["download", "."],
    ),
    "statsmodels": (
        SERIES,
        "DataError",
        "from vssn.data.series import load_series; load_series('co2')",
        ["fit", "--config", "series"],
    ),
    "vega_datasets": (
        SERIES,
        "DataError",
        "from vssn.data.series import load_series; load_series('weather')",
        ["fit", "--config", "series", "--set", "data.set=weather"],
    ),
    "music21": (
        CHORALES,
        "DataError",
        "from vssn.data.chorales import load_chorales; load_chorales('.')",
        ["fit", "--config", "music-vssn", "--set", "data.set=jsb_eighths", "--data", "."],
    ),
}


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return prepared_python.run(f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}", folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With what a reader looks for before it opens it."""
    for number in range(10):
        (tmp_path / f"{number}.wav").write_bytes(b"not read")
    (tmp_path / "own").mkdir()
    for name in ("x.csv", "x.parquet", "x.h5", "x.mid", "x.gif"):
        (tmp_path / "own" / name).write_bytes(b"not read")
    with wave.open(str(tmp_path / "own" / "x.wav"), "wb") as file:  # inspected before it is resampled
        file.setparams((1, 2, 8000, 400, "NONE", ""))
        file.writeframes(bytes(800))
    return tmp_path


@pytest.mark.parametrize("package", CASES)
def test_one_line_from_python(package: str, folder: Path) -> None:
    advice, kind, statement, _ = CASES[package]
    done = run(f"sys.modules[{package!r}] = None; {statement}", folder)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"vssn.errors.{kind}: {package} is not installed; {advice}"


@pytest.mark.one_in(2)
@pytest.mark.parametrize("package", CASES)
def test_one_line_at_the_command_line(package: str, folder: Path) -> None:
    advice, _, _, command = CASES[package]
    done = run(f"sys.modules[{package!r}] = None; from vssn.cli import main; sys.exit(main({command!r}))", folder)
    assert done.returncode == 2, done.stderr
    assert done.stderr == f"vssn: error: {package} is not installed; {advice}\n"


@pytest.mark.parametrize("package", ["pydantic", "pytorch_lightning", "matplotlib"])
def test_the_demo_says_so_before_it_trains(package: str, folder: Path) -> None:
    done = run(f"sys.modules[{package!r}] = None; from vssn.demo import main; sys.exit(main([]))", folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"demo: error: {package} is not installed; {TRAIN}\n"


# Hidden in models/test_pretrained.py and models/test_export.py: there it takes a model.
ELSEWHERE = {"huggingface_hub", "onnx", "onnxscript", "onnxruntime"}


def test_every_package_of_the_extras_is_hidden_above() -> None:
    lines = (ROOT / "pyproject.toml").read_text().partition("optional-dependencies")[2].partition("\ntest = ")[0]
    names = re.findall(r'"([\w-]+)>=', lines)
    hidden = {name.replace("-", "_").replace("PyYAML", "yaml").replace("pillow", "PIL") for name in names}
    assert hidden == {*CASES, *ELSEWHERE}


def test_a_package_that_does_not_work_is_said_too() -> None:
    works = r"^a package cannot be imported \(no libsndfile\); .* 'vssn\[speech\]'$"
    with pytest.raises(DataError, match=works), needing("speech", DataError):
        raise OSError("no libsndfile")
    with pytest.raises(ImportError, match=r"^torch_x is not installed; ") as caught, needing("train"):
        raise ModuleNotFoundError("no torch_x", name="torch_x.y")
    assert isinstance(caught.value, PackageError)
