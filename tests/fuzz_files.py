"""python tests/fuzz_files.py: damaged files for every reader: bytes flipped, cut out, spliced, lengths changed; of
archives and of texts what is inside, too.

A reader may take a file, or refuse it by an error of vssn.errors in one line. A crash, any other exception, more than
SECONDS of processor time or MEMORY of memory are faults; each kind is kept once in --keep.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import mmap
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from reliability_records import record

import vssn
from vssn.cli import main as command
from vssn.data.formats import read
from vssn.data.music import load_music
from vssn.data.speech import load_speech
from vssn.errors import UserError
from vssn.training.checkpoints import load_model
from vssn.training.config import check_config, load_config

SECONDS = 20  # of the processor, for one input
MEMORY = 3 << 30  # bytes beyond what the process has at its start
BATCH = 250  # inputs of a process
SHOWN = 50  # one of so many goes through the command line

NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
TOKENS = [
    *(b"0 -1 1e999 nan inf -inf 9999999999999999999999 0x1 1_0 .5 true null ~ [] {} '' &a *a !!python/tuple".split()),
    *(b'<<: ? | > % @ ` : - , ; \t \n \r \x00 \xff \xfe\xff \xef\xbb\xbf "'.split(b" ")),
    *(b"2024-02-30 9999-99-99 1700-01-01 3000-01-01 12:61 NaT model data training set jsb files given".split()),
]


# ---- What is damaged ---------------------------------------------------------------------------------


def changed(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """One to eight changes."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        at = draw.randrange(len(data) + 1) if draw.random() < 0.5 else draw.randrange(min(len(data), 200) + 1)
        kind = draw.randrange(9)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + draw.choice((1, 2, 4, 8, 64))]
        elif kind == 4:
            form = draw.choice(("<B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
            size = struct.calcsize(form)
            data[at : at + size] = struct.pack(form, draw.choice(NUMBERS) & (2 ** (8 * size) - 1))
        elif kind == 5:
            data[at:at] = draw.choice(TOKENS)
        elif kind == 6:
            length = draw.randrange(1, 64)
            start = draw.randrange(len(data) + 1)
            data[at:at] = data[start : start + length]
        elif kind == 7:
            other = draw.choice(others)
            start = draw.randrange(len(other) + 1)
            data[at : at + draw.choice((0, 4, 16))] = other[start : start + draw.randrange(1, 200)]
        else:
            data[at:at] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 9)))
        data = data[: 1 << 16]
    return bytes(data)


def changed_inside(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Of an archive: one of its files is changed, with a right checksum; or the archive."""
    if draw.random() < 0.4:
        return changed(content, draw, others)
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w") as new:
        names = old.namelist()
        picked = draw.choice([name for name in names if "pkl" in name or "npy" in name] or names)
        for name in names:
            part = old.read(name)
            new.writestr(name, changed(part, draw, others) if name == picked else part)
    return result.getvalue()


# ---- Seeds, made here: small, and of every reader ----------------------------------------------------


def _mat(draw: np.random.Generator) -> list[bytes]:
    import scipy.io

    found = []
    for compressed in (False, True):
        content = {}
        for key in ("traindata", "validdata", "testdata"):
            cells = np.empty((1, 2), dtype=object)
            for index in range(2):
                cells[0, index] = draw.integers(0, 2, (2, 88)).astype(np.uint8)
            content[key] = cells
        file = io.BytesIO()
        scipy.io.savemat(file, content, do_compression=compressed)
        found.append(file.getvalue())
    return found


def _pickles() -> list[bytes]:
    content: dict[str, Any] = {part: [[(60, 64), (), (67,)], [[21], [108]]] for part in ("train", "valid", "test")}
    return [pickle.dumps(content, protocol) for protocol in (0, 2, 4)]


def _midi() -> list[bytes]:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack(">I", len(body)) + body

    notes = bytes.fromhex("00ff510307a12000c00500903c4060803c000090404060400000ff2f00")
    head = [struct.pack(">HHH", form, tracks, 96) for form, tracks in ((0, 1), (1, 2))]
    return [chunk(b"MThd", head[0]) + chunk(b"MTrk", notes), chunk(b"MThd", head[1]) + 2 * chunk(b"MTrk", notes)]


def _recordings(folder: Path) -> dict[str, list[bytes]]:
    import soundfile

    samples, found = np.sin(np.arange(600) / 9).astype(np.float32), {}
    for name, subtype in (("wav", "PCM_16"), ("wav", "FLOAT"), ("flac", "PCM_16")):
        soundfile.write(folder / f"a.{name}", samples, 16000, subtype=subtype)
        found.setdefault(name, []).append((folder / f"a.{name}").read_bytes())
    head = (
        "NIST_1A\n   1024\nchannel_count -i 1\nsample_rate -i 16000\nsample_n_bytes -i 2\nsample_byte_format -s2 01\n"
    )
    head += "sample_sig_bits -i 16\nsample_coding -s3 pcm\nsample_count -i 600\nend_head\n"
    found["sph"] = [head.ljust(1024).encode() + (samples * 9000).astype("<i2").tobytes()]
    return found


def _tables(folder: Path) -> dict[str, list[bytes]]:
    import pandas as pd

    times = pd.date_range("2024-01-01", periods=8, freq="h")
    wide = pd.DataFrame({"time": times, "a": np.arange(8.0), "b": [1, 2, None, 4, 5, 6, 7, 8]})
    long = pd.DataFrame({"id": list("aaaabbbb"), "time": [*times[:4], *times[:4]], "load": np.arange(8.0)})
    plain = pd.DataFrame({"t": np.arange(6) / 10, "y": np.arange(6)})
    found: dict[str, list[bytes]] = {"csv": [], "tsv": [], "parquet": []}
    for frame in (wide, long, plain):
        found["csv"].append(frame.to_csv(index=False).encode())
        found["tsv"].append(frame.to_csv(index=False, sep="\t").encode())
        frame.to_parquet(folder / "a.parquet")
        found["parquet"].append((folder / "a.parquet").read_bytes())
    return found


def _arrays() -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {"npz": [], "npy": [], "h5": []}
    x = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    for arrays in (
        {"x": x, "u": x[..., :1], "mask": x > 2, "lengths": np.array([4, 2])},
        {"x_train": x, "x_valid": x[:1]},
        {"x_0": x[0], "x_1": x[1, :2]},
    ):
        file = io.BytesIO()
        np.savez(file, **arrays)
        found["npz"].append(file.getvalue())
    for array in (x, x[0], np.zeros((3, 4, 4), np.uint8)):
        file = io.BytesIO()
        np.save(file, array)
        found["npy"].append(file.getvalue())
    import h5py

    for names in (("train_data", "valid_data"), ("a/b",)):
        file = io.BytesIO()
        with h5py.File(file, "w") as target:
            for name in names:
                target[name] = x
        found["h5"].append(file.getvalue())
    return found


def _checkpoint() -> bytes:
    settings = {
        "data": {"set": "jsb"},
        "model": {"hidden_size": 2, "latent_size": 1},
        "training": {"output": "run", "accelerator": "cpu"},
    }
    config = check_config(settings, "")
    from vssn.nn.model_files import describe

    model = config.build_model()
    own = {"format": 1, "config": config.model_dump(mode="json"), "num_sequences": None, "epoch": 1}
    own |= {"valid_elbo_per_frame": -1.0, "model": describe(model)}
    file = io.BytesIO()
    state = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    torch.save({"state_dict": state, "vssn": own, "global_step": 3}, file)
    return file.getvalue()


def _gif(folder: Path) -> list[bytes]:
    from PIL import Image

    frames = [Image.fromarray(np.full((4, 5), 40 * index, np.uint8)) for index in range(3)]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:], duration=40)
    return [(folder / "a.gif").read_bytes()]


Reader = Callable[[Path], Any]


class Form:
    """Files of one ending: seeds, how they are damaged, how they are read, and by which command."""

    def __init__(self, ending: str, seeds: list[bytes], reader: Reader, words: list[str], inside: bool = False) -> None:
        self.ending, self.seeds, self.reader, self.words = ending, seeds, reader, words
        self.change = changed_inside if inside else changed


def forms_in(folder: Path) -> dict[str, Form]:
    """All of them; `folder` is used to make the seeds."""
    draw = np.random.default_rng(0)
    audio, tables, arrays = _recordings(folder), _tables(folder), _arrays()

    def music(path: Path) -> Any:
        return load_music("JSB_Chorales", path.parent)

    def speech(path: Path) -> Any:
        return load_speech("blizzard", path.parent)

    def pretrained(path: Path) -> Any:
        return vssn.VSSN.from_pretrained(path.parent)

    settings = {"data": {"set": "jsb"}, "model": {"hidden_size": 2, "latent_size": 1}, "training": {"max_epochs": 1}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    as_music = ["fit", "--config", str(folder / "tiny.yaml"), "--data", "{folder}", "--output", "{folder}/run"]
    found = {
        "mat": Form("JSB_Chorales.mat", _mat(draw), music, as_music),
        "pickle": Form("JSB_Chorales.pickle", _pickles(), music, as_music),
        "midi": Form("a.mid", _midi(), read, ["init", "{file}"]),
        "checkpoint": Form("best.ckpt", [_checkpoint()], load_model, ["info", "{file}"], inside=True),
        "yaml": Form("a.yaml", _configs(), load_config, ["fit", "--config", "{file}", "--output", "/dev/null/x"]),
        "gif": Form("a.gif", _gif(folder), read, ["init", "{file}"]),
    }
    for name in ("wav", "flac", "sph"):
        found[name] = Form(f"a.{name}", audio[name], read, ["init", "{file}"])
    found["speech"] = Form("a.wav", audio["wav"], speech, ["init", "{file}"])
    for name, seeds in (tables | arrays).items():
        found[name] = Form(f"a.{name}", seeds, read, ["init", "{file}"], inside=name == "npz")
    torch.manual_seed(0)
    vssn.VSSN(3, 2, 1).save_pretrained(folder / "model")
    for name in ("model.safetensors", "config.json"):
        seed = (folder / "model" / name).read_bytes()
        found[name] = Form(name, [seed], pretrained, ["info", "{file}"])
    return found


def _configs() -> list[bytes]:
    from importlib import resources

    texts = [entry.read_bytes() for entry in resources.files("vssn.configs").iterdir() if entry.name.endswith(".yaml")]
    settings = {"data": {"set": "files", "path": "x.csv"}, "model": {"hidden_size": 3, "latent_size": 2}}
    return [*sorted(texts), yaml.safe_dump(settings).encode()]


# ---- One input ---------------------------------------------------------------------------------------


def fault_of(form: Form, content: bytes, folder: Path, through_command: bool) -> str | None:
    """What is wrong with how the content is read, with the place; None: it is taken, or refused in one line."""
    path = folder / form.ending
    path.write_bytes(content)
    try:
        if through_command:
            return _fault_of_command(form, path)
        form.reader(path)
    except UserError as error:
        return f"more than one line: {error}" if "\n" in str(error) else None
    except BaseException as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "/vssn/" in frame.filename]
        at = f"{Path(own[-1].filename).name}:{own[-1].name}" if own else "?"
        return f"{type(error).__name__} in {at}: {' '.join(str(error).split())[:160]}"
    return None


def _fault_of_command(form: Form, path: Path) -> str | None:
    out, err = io.StringIO(), io.StringIO()
    shutil.rmtree(path.parent / "run", ignore_errors=True)
    words = [word.format(file=path, folder=path.parent) for word in form.words]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command(words)
    lines = err.getvalue().splitlines()
    if code == 0 and not lines:
        return None
    if code == 2 and len(lines) == 1 and lines[0].startswith("vssn: error: "):
        return None
    return f"the command ends with {code} and says {lines[:3]}"


def draw_input(form: Form, seed: str) -> bytes:
    """The same bytes for the same seed."""
    draw = random.Random(seed)
    return form.change(draw.choice(form.seeds), draw, form.seeds)


# ---- Many, in processes that may die -----------------------------------------------------------------


def run_batch(name: str, form: Form, numbers: range, seed: int, folder: Path) -> list[tuple[int, str]]:
    """The faults of a batch, each with its number; a process that dies names the one that it was at."""
    faults: list[tuple[int, str]] = []
    at = mmap.mmap(-1, 8)
    todo = list(numbers)
    while todo:
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            _work(name, form, todo, seed, folder, at, writing)
        os.close(writing)
        with os.fdopen(reading, "rb") as stream:
            text = stream.read()
        status = os.waitpid(pid, 0)[1]
        faults += [(number, said) for number, said in map(json.loads, text.splitlines())]
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return faults
        (last,) = struct.unpack("<q", at[:8])
        ended = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
        faults.append((last, f"{SECONDS} s of the processor" if ended == "SIGPROF" else f"the process dies: {ended}"))
        todo = [number for number in todo if number > last]
    return faults


def _work(name: str, form: Form, todo: list[int], seed: int, folder: Path, at: mmap.mmap, writing: int) -> None:
    code = 1
    try:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        warnings.simplefilter("ignore")
        with os.fdopen(writing, "wb", buffering=0) as stream:
            for number in todo:
                at[:8] = struct.pack("<q", number)
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
                content = draw_input(form, f"{seed}-{name}-{number}")
                said = fault_of(form, content, folder, number % SHOWN == SHOWN - 1)
                if said is not None:
                    stream.write(json.dumps([number, said]).encode() + b"\n")
        code = 0
    finally:
        os._exit(code)


def run(inputs: int, minutes: float, seed: int, only: Sequence[str], keep: Path) -> tuple[Counter[str], dict[str, str]]:
    """Inputs of each form in turn; how many there were of each, and of each kind of fault the first one."""
    until = time.monotonic() + 60 * minutes
    counts: Counter[str] = Counter()
    faults: dict[str, str] = {}
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=shared) as place:
        forms = {name: form for name, form in forms_in(Path(place)).items() if not only or name in only}
        places = {name: Path(place) / "files" / name for name in forms}
        for name, own in places.items():
            own.mkdir(parents=True)
            if forms[name].ending in ("model.safetensors", "config.json"):
                for file in (Path(place) / "model").iterdir():
                    (own / file.name).write_bytes(file.read_bytes())
            for content in forms[name].seeds:
                said = fault_of(forms[name], content, own, False)
                if said is not None:
                    faults[f"{name}: undamaged: {said}"] = said
        start = 0
        while counts.total() < inputs and time.monotonic() < until:
            for name, form in forms.items():
                if counts.total() >= inputs or time.monotonic() >= until:
                    break
                for number, said in run_batch(name, form, range(start, start + BATCH), seed, places[name]):
                    kind = f"{name}: {said.partition(': ')[0] if said[0].isupper() else said}"
                    if kind not in faults:
                        faults[kind] = said
                        keep.mkdir(parents=True, exist_ok=True)
                        (keep / f"{name}-{seed}-{number}-{form.ending}").write_bytes(
                            draw_input(form, f"{seed}-{name}-{number}")
                        )
                        print(f"{kind}: input {number}: {said}", flush=True)
                counts[name] += BATCH
            start += BATCH
    return counts, faults


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python tests/fuzz_files.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000, metavar="N", help="in all (%(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="no batch is begun after that (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds draw other inputs (%(default)s)")
    parser.add_argument("--only", nargs="+", default=(), metavar="FORM", help="these alone")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz-files"), help="folder of inputs at fault")
    parser.add_argument("--record", action="store_true", help="add what was counted to results/reliability")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    counts, faults = run(options.inputs, options.minutes, options.seed, options.only, options.keep)
    for name, count in counts.items():
        print(f"{name:<20}{count:>9}")
    print(f"{counts.total()} inputs of {len(counts)} forms, {len(faults)} kinds of fault")
    if options.record:
        through = counts.total() // SHOWN
        figures = {"inputs": counts.total(), "through the command line": through, "forms": len(counts)}
        record("files", packages=("pandas", "h5py", "pyarrow"), **figures, **{"kinds of fault": len(faults)})
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
