"""Downloads of the music sets, from a server on this machine: checked, never in place of another file, clear errors."""

from __future__ import annotations

import functools
import hashlib
import http.server
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vssn.cli import main
from vssn.data import download
from vssn.data.download import SHA256, SOURCE, download_music
from vssn.data.music import MUSIC_SETS
from vssn.errors import DataError

pytest.importorskip("pooch", reason="a download needs pooch: pip install 'vssn[download]'")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of files that stand for the published ones."""
    folder = tmp_path / "published"
    folder.mkdir()
    for name in SHA256:
        (folder / f"{name}.mat").write_bytes(name.encode())
    monkeypatch.setattr(download, "SHA256", {name: hashlib.sha256(name.encode()).hexdigest() for name in SHA256})
    return folder


@pytest.fixture
def source(published: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(published))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_sets_come_once(source: str, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    paths = download_music(folder, source)
    assert paths == [folder / f"{name}.mat" for name in SHA256]
    assert [path.read_text() for path in paths] == list(SHA256)
    assert sorted(folder.iterdir()) == sorted(paths)
    assert download_music(folder, "http://127.0.0.1:1") == paths  # nothing is asked for again


def test_another_file_is_never_overwritten(source: str, tmp_path: Path) -> None:
    (tmp_path / "MuseData.mat").write_text("my own")
    with pytest.raises(DataError, match=r"MuseData\.mat: expected the published copy of MuseData, got a file of other"):
        download_music(tmp_path, source)
    assert (tmp_path / "MuseData.mat").read_text() == "my own"


def test_another_content_is_refused(source: str, published: Path, tmp_path: Path) -> None:
    (published / "JSB_Chorales.mat").write_text("truncated")
    with pytest.raises(DataError, match=r"^http.*\.mat: expected the published copy of JSB_Chorales, got other"):
        download_music(tmp_path / "here", source)
    assert not any((tmp_path / "here").iterdir())


@pytest.mark.parametrize("path", ["/absent", ":1"])
def test_no_answer_is_one_line(path: str, source: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^http.*\.mat: no file came \(\w+\); check the network, try again$"):
        download_music(tmp_path / "here", source + path if path.startswith("/") else "http://127.0.0.1:1")


def test_a_folder_that_cannot_be(source: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"^cannot write .*file \(.+\); name another folder$"):
        download_music(tmp_path / "file", source)


def test_without_pooch_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DataError, match=r"^pooch is not installed; .* pip install 'vssn\[download\]'$"):
        download_music(tmp_path)


def test_the_command(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download.download_music, "__defaults__", (source,))
    assert main(["download", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / f"{name}.mat") for name in SHA256]


def test_every_set_has_its_sum() -> None:
    assert set(SHA256) == set(MUSIC_SETS)
    assert SOURCE.startswith("https://")
