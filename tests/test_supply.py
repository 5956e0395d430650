"""What comes with the package and what it reaches for: licences, the network, how wheels are made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import licences
import pytest
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent

# ---- Licences --------------------------------------------------------------------------------------------------------


def test_the_licence_of_every_pin_is_listed() -> None:
    """LICENSES.md is what the installed packages say, the pins it names are those of constraints.txt."""
    page = licences.PAGE.read_text(encoding="utf-8")
    assert page == licences.HEAD + "\n".join(licences.rows(page)) + "\n", "make licences"
    names = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")][1:]
    assert names == sorted(licences.pins())
    assert len(names) > 30
    assert "not stated" not in page


def test_a_pin_of_which_nothing_is_known_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(licences, "pins", lambda: {"no-such-package": "1.0"})
    with pytest.raises(ValueError, match=r"no-such-package is not installed here, and LICENSES\.md does not list it"):
        licences.rows("")
    assert licences.rows("| no-such-package | 0.9 | MIT |\n") == ["| no-such-package | 1.0 | MIT |"]


# ---- The network -----------------------------------------------------------------------------------------------------

# An audit hook sees every use of a socket, from C as well, and cannot be taken away again.
OFFLINE = """
import os, sys
def watch(event, arguments):
    if event.startswith(("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostby", "socket.sendto",
                         "urllib.Request", "http.client.connect", "ftplib.connect")):
        sys.stderr.write(f"{event} {arguments}\\n")
        sys.stderr.flush()
        os._exit(97)
sys.addaudithook(watch)
"""
USE = """
import importlib, pathlib, pkgutil, torch, vssn, vssn_kernels
for package in (vssn, vssn_kernels):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith(("__main__", "_cuda")) and ".cuda" not in module.name:
            importlib.import_module(module.name)
x = torch.rand(6, 9, 4).round()
model = vssn.VSSN(4, hidden_size=5, latent_size=2, noise_size=1)
vssn.fit(model, (x[:4], x[4:5], x[5:]), training={"output": "run", "max_epochs": 1}, verbose=False)
again = vssn.VSSN.from_pretrained(model.save_pretrained("saved") or "saved")
again.forecast(x.transpose(0, 1), 3, samples=2)
vssn.VSSN.from_pretrained(next(pathlib.Path("run").glob("*.ckpt")))
print("done")
"""


def offline(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", OFFLINE + code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)


def test_nothing_reaches_for_the_network(tmp_path: Path) -> None:
    done = offline(USE, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "done"


def test_what_reaches_for_it_is_seen(tmp_path: Path) -> None:
    done = offline("import socket\nsocket.create_connection(('127.0.0.1', 9), 1)", tmp_path)
    assert done.returncode == 97
    assert done.stderr.startswith("socket.")


# ---- Wheels ----------------------------------------------------------------------------------------------------------


def test_wheels_are_made_for_both_linuxes() -> None:
    """For every Python that is promised; PyTorch's OpenMP runtime stays the only one."""
    tomllib = pytest.importorskip("tomllib")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheels = settings["tool"]["cibuildwheel"]
    named = [line.rpartition(" ")[2] for line in settings["project"]["classifiers"] if " 3." in line]
    assert wheels["build"] == [f"cp{version.replace('.', '')}-*" for version in named]
    linux = wheels["linux"]
    assert linux["archs"] == ["x86_64", "aarch64"]
    assert {key for key in linux if key.startswith("manylinux")} == {
        f"manylinux-{arch}-image" for arch in linux["archs"]
    }
    assert "--exclude libgomp.so.1" in linux["repair-wheel-command"]


def test_the_archive_takes_what_a_build_with_a_gpu_needs() -> None:
    lines = (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines()
    assert "graft csrc" in lines


def test_what_is_promised_is_what_was_tested() -> None:
    """Pythons from the oldest to the newest that is named, and PyTorch from the oldest that an installation takes."""
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [line.rpartition(" ")[2] for line in project["classifiers"] if " 3." in line]
    record = ROOT / "results/reliability/versions.json"
    if not record.exists():
        pytest.skip("not recorded yet: make test-python RECORD=1")
    entries = json.loads(record.read_text(encoding="utf-8"))
    pythons = sorted(Version(entry["versions"]["python"]) for entry in entries)
    oldest, newest = (f"{python.major}.{python.minor}" for python in (pythons[0], pythons[-1]))
    assert (oldest, newest) == (named[0], named[-1])
    assert project["requires-python"] == f">={oldest}"
    torch = min(Version(entry["versions"]["torch"]) for entry in entries)
    assert f"torch>={torch.major}.{torch.minor}" in project["dependencies"]
