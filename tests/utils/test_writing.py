"""Files are written whole or not at all, by several writers of one file too; what a killed writer leaves is no
result."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vssn import VSSN, from_pretrained
from vssn.data.formats import read
from vssn.training.run_directory import make_good
from vssn.utils.command import parts_of, replacing

KILLED = """
import os, signal, sys
from pathlib import Path
from vssn.utils.command import replacing
with replacing(Path(sys.argv[1])) as part:
    part.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def leave_a_part(path: Path) -> None:
    """As a writer that is killed leaves it."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL
    assert [part.read_text() for part in parts_of(path)] == ["half"]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path) as one:
        one.write_text("one")
        random.seed(0)
        with replacing(path) as two:
            random.seed(0)
            with replacing(path) as three:
                assert len({one, two, three}) == 3
                three.write_text("three")
            assert path.read_text() == "three"
            two.write_text("two")
            assert one.read_text() == "one"
        assert path.read_text() == "two"
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_many_writers_at_once(tmp_path: Path) -> None:
    """Every look finds the whole of what one of them wrote."""
    path, letters, failed = tmp_path / "file", "abcdef", []

    def write(letter: str) -> None:
        try:
            for _ in range(40):
                with replacing(path) as part, open(part, "w") as file:
                    for _ in range(50):
                        file.write(1000 * letter)
                        file.flush()
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in letters]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            found = path.read_text()
            assert found == 50_000 * found[0]
    for thread in threads:
        thread.join()
    assert not failed
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def fail() -> None:
        with replacing(path) as part:
            part.write_text("half")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", [255 * "n", 127 * "ü", "." + 200 * "n"])
def test_any_name_that_a_file_may_have(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with replacing(path) as part:
        part.write_text("all")
        assert parts_of(path) == [part]
    assert path.read_text() == "all"


def test_a_file_is_as_open_to_others_as_any(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "file") as part:
            part.write_text("all")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
def test_what_a_killed_writer_leaves_is_no_result(tmp_path: Path) -> None:
    """Not of the data in the folder, nor of the parts of other files; a run clears its own away."""
    table, run = tmp_path / "tables" / "sea.csv", tmp_path / "run"
    for folder in (table.parent, run):
        folder.mkdir()
    table.write_text("level\n" + "\n".join(map(str, range(9))) + "\n")
    leave_a_part(table)
    assert parts_of(table.with_name("se.csv")) == []
    assert read(table.parent).names == read(table).names
    leave_a_part(run / "last.ckpt")
    leave_a_part(run / "metrics.csv")
    (run / "last.ckpt.of-mine.part").touch()
    make_good(run)
    assert [path.name for path in run.iterdir()] == ["last.ckpt.of-mine.part"]


def test_a_model_saved_by_two_at_once(tmp_path: Path) -> None:
    model, failed = VSSN(3, 4, 2), []

    def save() -> None:
        try:
            for _ in range(20):
                model.save_pretrained(tmp_path)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=save) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert from_pretrained(tmp_path).x_size == 3
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".md", ".safetensors"]
