"""Every form of file that the package reads: small whole ones, made here, how they are damaged, and what reads them."""

from __future__ import annotations

import datetime
import decimal
import gzip
import io
import json
import pickle
import random
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from damage import changed, changed_inside, changed_text, changed_tree

import vssn
from vssn.data.formats import read
from vssn.data.music import load_music
from vssn.data.speech import load_speech
from vssn.estimator import SETTINGS, Forecaster
from vssn.experiments.figures import read_metrics
from vssn.experiments.jobs import Settings
from vssn.experiments.report import write_report
from vssn.nn.model_files import describe
from vssn.training.checkpoints import load_model
from vssn.training.config import check_config, load_config
from vssn.training.run_directory import check_folder, make_good, read_rows

ROOT = Path(__file__).resolve().parent.parent

Reader = Callable[[Path], Any]


@dataclass
class Form:
    """Files of one form. Readers take turns, and so do commands, in which {file}, {folder} and {root} stand for the
    file, its folder and that of all."""

    name: str  # of the file, below a folder of its own
    seeds: Sequence[bytes]
    readers: Sequence[Reader]
    commands: Sequence[str] = ()
    change: Callable[[bytes, random.Random, Sequence[bytes]], bytes] = changed
    trees: Sequence[Any] = ()  # what files hold
    dump: Callable[[Any], bytes] | None = None  # makes a file of such a one
    beside: Mapping[str, bytes] = field(default_factory=dict)  # whole files of the folder

    def draw(self, draw: random.Random, pool: Sequence[bytes]) -> bytes:
        """A damaged file: of one in the pool, or with other things in it."""
        if self.dump is not None and draw.random() < 0.4:
            try:
                return self.dump(changed_tree(draw.choice(self.trees), draw))
            except Exception:  # files of this form do not hold such a thing
                pass
        return self.change(draw.choice(pool), draw, pool)


def forms_in(folder: Path) -> dict[str, Form]:
    """All of them by name; `folder` is used to make the files."""
    (folder / "tiny.ckpt").write_bytes(_checkpoint(folder, "jsb"))
    (folder / "speech.ckpt").write_bytes(_checkpoint(folder, "blizzard"))
    found = {**_music(), **_recordings(folder), **_tables(folder), **_arrays(), **_films(folder)}
    for name in found.keys() - {"mat", "pickle", "speech"}:
        found[name].commands = ["init {folder}" if name == "picture" else "init {file}"]
    return found | _models(folder) | _runs(folder)


# ---- Music -------------------------------------------------------------------------------------------


def _music() -> dict[str, Form]:
    def music(path: Path) -> Any:
        return load_music("JSB_Chorales", path.parent)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack(">I", len(body)) + body

    draw = np.random.default_rng(0)
    rolls = {f"{part}data": [draw.integers(0, 2, (2, 88)).astype(np.uint8)] * 2 for part in ("train", "valid", "test")}
    lists: dict[str, Any] = {part: [[(60, 64), (), (67,)], [[21], [108]]] for part in ("train", "valid", "test")}
    notes = bytes.fromhex("00ff510307a12000c00500903c4060803c000090404060400000ff2f00")
    head = [struct.pack(">HHH", form, tracks, 96) for form, tracks in ((0, 1), (1, 2))]
    midi = [chunk(b"MThd", head[0]) + chunk(b"MTrk", notes), chunk(b"MThd", head[1]) + 2 * chunk(b"MTrk", notes)]
    score = ["evaluate {root}/tiny.ckpt --data {folder} --split valid"]
    mats = [_mat(rolls, compressed) for compressed in (False, True)]
    pickles = [pickle.dumps(lists, protocol) for protocol in (0, 2, 4)]
    return {
        "mat": Form("JSB_Chorales.mat", mats, [music], score, trees=[rolls], dump=_mat),
        "pickle": Form("JSB_Chorales.pickle", pickles, [music], score, trees=[lists], dump=pickle.dumps),
        "midi": Form("a.mid", midi, [read]),
    }


def _mat(tree: Any, compressed: bool = False) -> bytes:
    import scipy.io

    content = {}
    for name, parts in tree.items():
        content[name] = parts
        if isinstance(parts, list):
            content[name] = np.empty((1, len(parts)), dtype=object)
            for index, part in enumerate(parts):
                content[name][0, index] = part
    file = io.BytesIO()
    scipy.io.savemat(file, content, do_compression=compressed)
    return file.getvalue()


# ---- Recordings --------------------------------------------------------------------------------------


def _recordings(folder: Path) -> dict[str, Form]:
    def speech(path: Path) -> Any:
        return load_speech("blizzard", path.parent).train[0]

    short, long = _sounds(folder, 600), _sounds(folder, 8200)
    found = {name: Form(f"a.{name}", seeds, [read]) for name, seeds in short.items()}
    found["speech"] = Form(
        "a.wav",
        [seed for seeds in long.values() for seed in seeds],
        [speech],
        ["evaluate {root}/speech.ckpt --data {folder} --split valid"],
        beside={f"b{index}.wav": long["wav"][0] for index in range(9)},
    )
    return found


def _sounds(folder: Path, count: int) -> dict[str, list[bytes]]:
    import soundfile

    samples, found = np.sin(np.arange(count) / 9).astype(np.float32), {}
    for name, subtype in (("wav", "PCM_16"), ("wav", "FLOAT"), ("wav", "ULAW"), ("flac", "PCM_16")):
        soundfile.write(folder / f"a.{name}", samples, 16000, subtype=subtype)
        found.setdefault(name, []).append((folder / f"a.{name}").read_bytes())
    head = f"""NIST_1A\n   1024\nchannel_count -i 1\nsample_rate -i 16000\nsample_n_bytes -i 2
sample_byte_format -s2 01\nsample_sig_bits -i 16\nsample_coding -s3 pcm\nsample_count -i {count}\nend_head\n"""
    found["sph"] = [head.ljust(1024).encode() + (samples * 9000).astype("<i2").tobytes()]
    return found


# ---- Tables, arrays, films ---------------------------------------------------------------------------


def _tables(folder: Path) -> dict[str, Form]:
    import pandas as pd

    times = np.arange("2024-01-01", "2024-01-01T08", dtype="M8[h]").astype("M8[ns]")
    trees: list[dict[str, Any]] = [
        {"time": times, "a": np.arange(8.0), "b": np.array([1, 2, np.nan, 4, 5, 6, 7, 8])},
        {"id": list("aaaabbbb"), "time": np.tile(times[:4], 2), "load": np.arange(8.0)},
        {"t": np.arange(6) / 10, "y": np.arange(6), "split": ["train"] * 3 + ["valid"] * 3},
    ]

    odd = {  # what parquet can hold besides
        "time": times[:4],
        "list": [[1, 2], [3], [], [4]],
        "struct": [{"a": 1}, {"a": 2}, None, {"a": 3}],
        "binary": [b"x", b"y", b"z", b"x"],
        "decimal": [decimal.Decimal("1.5"), decimal.Decimal("2"), None, decimal.Decimal("3")],
        "span": np.array([1, 2, 3, 4], "m8[s]"),
        "date": [datetime.date(2024, 1, day) for day in (1, 2, 3, 4)],
        "clock": [datetime.time(hour) for hour in (1, 2, 3, 4)],
        "category": pd.Categorical(["a", "b", None, "a"]),
        "numbers": pd.Categorical([1, 2, None, 1]),
        "whole": pd.array([1, None, 3, 4], "Int64"),
        "yes": pd.array([True, None, False, True], "boolean"),
        "zone": pd.date_range("2024-01-01", periods=4, tz="Europe/Paris"),
        "small": np.arange(4, dtype=np.float16),
    }
    odds = [{name: odd[name]} for name in odd] + [{"time": odd["time"], name: odd[name]} for name in odd] + [odd]

    def parquet(tree: Any) -> bytes:
        pd.DataFrame(tree).to_parquet(folder / "a.parquet")
        return (folder / "a.parquet").read_bytes()

    def zipped(content: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
        if draw.random() < 0.5:
            return changed(content, draw, others)
        return gzip.compress(changed_text(draw.choice(texts[","]), draw, texts[","]), 1)

    frames = [pd.DataFrame(tree) for tree in trees]
    texts = {mark: [frame.to_csv(index=False, sep=mark).encode() for frame in frames] for mark in ",\t;"}
    return {
        "csv": Form("a.csv", texts[","] + texts[";"][:1], [read], change=changed_text),
        "tsv": Form("a.tsv", texts["\t"], [read], change=changed_text),
        "csv.gz": Form("a.csv.gz", [gzip.compress(text, 1) for text in texts[","]], [read], change=zipped),
        "parquet": Form("a.parquet", list(map(parquet, trees + odds)), [read], trees=trees + odds, dump=parquet),
    }


def _arrays() -> dict[str, Form]:
    import h5py

    x = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    trees: list[dict[str, Any]] = [
        {"x": x, "u": x[..., :1], "mask": x > 2, "lengths": np.array([4, 2])},
        {"x_train": x, "x_valid": x[:1]},
        {"x_0": x[0], "x_1": x[1, :2]},
        {"x": np.zeros((3, 4, 4), np.uint8)},
    ]
    trials: list[dict[str, Any]] = [{"train_data": x, "valid_data": x, "train_ext_input": x[..., :1]}, {"a/b": x}]

    def npz(tree: Any) -> bytes:
        file = io.BytesIO()
        np.savez(file, **tree)
        return file.getvalue()

    def npy(tree: Any) -> bytes:
        file = io.BytesIO()
        np.save(file, tree)
        return file.getvalue()

    def h5(tree: Any) -> bytes:
        file = io.BytesIO()
        with h5py.File(file, "w") as target:
            for name, array in tree.items():
                target[name] = array
        return file.getvalue()

    zipped = [npz(tree) for tree in trees]
    single = [tree["x"] for tree in (trees[0], trees[3])] + [x[0]]
    return {
        "npz": Form("a.npz", zipped, [read], change=changed_inside, trees=trees, dump=npz),
        "npy": Form("a.npy", [npy(array) for array in single], [read], trees=single, dump=npy),
        "h5": Form("a.h5", [h5(tree) for tree in trials], [read], trees=trials, dump=h5),
    }


def _films(folder: Path) -> dict[str, Form]:
    from PIL import Image

    frames = [Image.fromarray(np.full((4, 5), 40 * index, np.uint8)) for index in range(3)]
    coloured = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3))

    def picture(name: str, image: Any = frames[0], **options: Any) -> bytes:
        image.save(folder / name, **options)
        return (folder / name).read_bytes()

    endings = ("png", "jpg", "bmp", "tiff")
    still = [picture(f"a.{ending}", image) for ending in endings for image in (frames[0], coloured)]
    still += [picture("a.tiff", compression=name) for name in ("tiff_lzw", "tiff_deflate", "packbits")]
    options = {"save_all": True, "append_images": frames[1:], "duration": 40}
    moving = [picture(f"a.{ending}", **options) for ending in ("gif", "webp")] + [picture("a.png", **options)]
    return {
        "film": Form("a.gif", moving, [read]),
        "picture": Form("film/a.png", still, [lambda path: read(path.parent)], beside={"b.png": still[0]}),
    }


# ---- Configurations and models -----------------------------------------------------------------------


def _settings(name: str, **training: Any) -> dict[str, Any]:
    model = {"hidden_size": 2, "latent_size": 1, "likelihood": "bernoulli" if name == "jsb" else "gaussian"}
    return {"data": {"set": name}, "model": model, "training": {"accelerator": "cpu", "max_epochs": 1, **training}}


def _checkpoint_tree(name: str, output: str) -> dict[str, Any]:
    config = check_config(_settings(name, output=output), "")
    torch.manual_seed(0)
    model = config.build_model()
    own = {"format": 1, "config": config.model_dump(mode="json"), "num_sequences": None, "epoch": 1}
    own |= {"valid_elbo_per_frame": -1.0, "model": describe(model)}
    return {
        "state_dict": {f"model.{name}": weight for name, weight in model.state_dict().items()},
        "vssn": own,
        "global_step": 3,
    }


def _checkpoint(folder: Path, name: str) -> bytes:
    return _saved(_checkpoint_tree(name, str(folder / "run")))


def _saved(tree: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(tree, file, **options)
    return file.getvalue()


def _as_json(tree: Any) -> bytes:
    return json.dumps(tree, indent=1).encode()


def _models(folder: Path) -> dict[str, Form]:
    from importlib import resources

    from safetensors.torch import load, save

    def pretrained(path: Path) -> Any:
        try:
            return vssn.from_pretrained(path if path.suffix == ".ckpt" else path.parent)
        except TypeError as error:  # a model with a part of the user's own, which Python would give
            if "must be given" not in str(error):
                raise

    def forecaster(path: Path) -> Any:
        return Forecaster.load(path.parent)

    def option(path: Path) -> Any:
        return load_config("jsb", [path.read_bytes().decode("latin-1")])

    torch.manual_seed(0)
    vssn.VSSN(3, 2, 1).save_pretrained(folder / "model")
    weights, config = ((folder / "model" / name).read_bytes() for name in ("model.safetensors", "config.json"))
    texts = [entry.read_bytes() for entry in resources.files("vssn.configs").iterdir() if entry.name.endswith(".yaml")]
    trees = [yaml.safe_load(text) for text in texts]
    own = {"data": {"set": "files", "path": "x.csv"}, "model": {"hidden_size": 3, "latent_size": 2}}
    nested = [b"a: " + b"[" * 500, b"data: {set: jsb}\nmodel: &a {name: vssn, hidden_size: *a}"]
    kept = {
        "parameters": {"epochs": 3, "likelihood": "gaussian"},
        "seed": 0,
        "history": {"epoch": [1.0]},
        "best_epoch": 1,
    }
    tree = _checkpoint_tree("jsb", str(folder / "run"))
    old = {**tree, "vssn": {name: value for name, value in tree["vssn"].items() if name != "model"}}
    options = [b"model.hidden_size=3", b"training={max_epochs: 2}", b"data.set=lorenz", b"model.name=rssm"]
    return {
        "checkpoint": Form(
            "best.ckpt",
            [_saved(tree), _saved(old), _saved(tree, _use_new_zipfile_serialization=False)],
            [load_model, pretrained],
            ["info {file}"],
            changed_inside,
            trees=[tree, old],
            dump=_saved,
        ),
        "model.safetensors": Form(
            "model.safetensors",
            [weights],
            [pretrained],
            trees=[load(weights)],
            dump=save,
            beside={"config.json": config},
        ),
        "config.json": Form(
            "config.json",
            [config, b"[" * 30000],
            [pretrained],
            change=changed_text,
            trees=[json.loads(config)],
            dump=_as_json,
            beside={"model.safetensors": weights},
        ),
        SETTINGS: Form(
            SETTINGS,
            [_as_json(kept), b"[" * 30000],
            [forecaster],
            change=changed_text,
            trees=[kept],
            dump=_as_json,
            beside={"model.safetensors": weights, "config.json": config},
        ),
        "yaml": Form(
            "a.yaml",
            [*texts, *nested],
            [load_config],
            ["fit --config {file} --output /dev/null/x"],
            changed_text,
            trees=[own, *trees],
            dump=lambda tree: yaml.safe_dump(tree).encode(),
        ),
        "--set": Form("option", options, [option], change=changed_text),
    }


# ---- What runs leave ---------------------------------------------------------------------------------


def _runs(folder: Path) -> dict[str, Form]:
    """Beside checkpoints, and by `vssn reproduce`."""
    settings = _settings("jsb", output="run")
    tree = _checkpoint_tree("jsb", "run")
    columns = ("epoch", "updates", "seconds", "train/elbo_per_frame", "valid/elbo_per_frame", "valid/kl_z_per_frame")
    rows = [columns, (1, 3, 1.5, -3.0, -1.0, 0.5), (2, 6, 2.5, -2.0, -0.5, 0.5)]
    log = "\n".join(",".join(map(str, row)) for row in rows).encode() + b"\n"
    records = [path.read_bytes() for path in sorted((ROOT / "results/runs/objectives").glob("*.json"))]

    config = check_config({**settings, "training": {"max_epochs": 5}}, "")

    def resumed(path: Path) -> Any:
        done = check_folder(path.parent, config, True)
        make_good(path.parent)
        return done

    def reported(path: Path) -> Any:
        return write_report(path.parents[3] / "page.md", Settings(path.parents[3]))

    info = ["info {folder}/best.ckpt"]
    whole = {"best.ckpt": _saved(tree), "config.yaml": yaml.safe_dump(settings).encode(), "metrics.csv": log}
    return {
        "last.ckpt": Form(
            "last.ckpt",
            [_saved(tree)],
            [resumed],
            ["fit --resume --output {folder}"],
            changed_inside,
            trees=[tree],
            dump=_saved,
            beside=whole,
        ),
        "metrics.csv": Form(
            "metrics.csv",
            [log],
            [lambda path: read_rows(path.parent, 99), lambda path: read_metrics(path.parent)],
            info,
            changed_text,
            beside=whole,
        ),
        "score.json": Form(
            "full/objectives/a/score.json",
            [*records, b"[" * 30000],
            [reported],
            [*info, "reproduce --report {folder}/page.md --output {folder}/../../.."],
            changed_text,
            trees=[json.loads(record) for record in records],
            dump=_as_json,
            beside=whole,
        ),
    }
