"""A checkpoint that loads and holds something else, and what stands beside it: one line, at the command line too."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vssn
from vssn.cli import main
from vssn.errors import CheckpointError, UserError
from vssn.nn.model_files import describe
from vssn.training.checkpoints import load_model
from vssn.training.config import check_config
from vssn.training.run_directory import check_folder, make_good

SETTINGS = {"data": {"set": "jsb"}, "model": {"hidden_size": 2, "latent_size": 1}, "training": {"max_epochs": 5}}

Tree = dict[str, Any]


def tree() -> Tree:
    config = check_config(SETTINGS, "")
    model = config.build_model()
    own = {"format": 1, "config": config.model_dump(mode="json"), "epoch": 1, "valid_elbo_per_frame": -1.0}
    weights = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    return {"state_dict": weights, "vssn": own | {"model": describe(model), "num_sequences": None}}


def put(*path: str, value: Any) -> Callable[[Tree], None]:
    """Sets an entry; `...` takes it out."""

    def change(tree: Tree) -> None:
        for name in path[:-1]:
            tree = tree[name]
        if value is ...:
            del tree[path[-1]]
        else:
            tree[path[-1]] = value

    return change


def first_weight(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tree], None]:
    def apply(tree: Tree) -> None:
        name = next(name for name, weight in tree["state_dict"].items() if weight.ndim == 2)
        tree["state_dict"][name] = change(tree["state_dict"][name])

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("vssn", "format", value=torch.ones(2)), "expected a checkpoint of format 1, got tensor([1., 1.])"),
        (put("vssn", "epoch", value=...), "its epoch is damaged or missing"),
        (put("vssn", "epoch", value="1"), "its epoch is damaged or missing"),
        (put("vssn", "config", value=[1]), "its config is damaged or missing"),
        (put("vssn", "config", "data", value=5), "its config is damaged or missing"),
        (put("vssn", "config", "model", "mlp_size", value=torch.zeros(2)), "its config is damaged or missing"),
        (put("vssn", "model", value=["VSSN"]), "its model is damaged or missing"),
        (put("vssn", "model", "given", value=3), "its description is damaged at 'given'"),
        (put("vssn", "valid_elbo_per_frame", value="-1"), "its valid_elbo_per_frame is damaged or missing"),
        (lambda tree: tree["state_dict"].update({3: torch.zeros(1)}), "its state_dict is damaged or missing"),
        (first_weight(lambda weight: weight.to(torch.complex64)), "is of complex64, strided on cpu, expected plain"),
        (first_weight(lambda weight: weight.to_sparse()), "is of float32, sparse_coo on cpu, expected plain float32"),
        (first_weight(lambda weight: weight.to("meta")), "is of float32, strided on meta, expected plain float32"),
    ],
)
def test_what_does_not_fit_is_named(change: Callable[[Tree], None], message: str, tmp_path: Path) -> None:
    content, path = tree(), tmp_path / "best.ckpt"
    torch.save(content, path)
    load_model(path)
    change(content)
    torch.save(content, path)
    for load in (load_model, vssn.from_pretrained):
        with pytest.raises(CheckpointError) as caught:
            load(path)
        assert message in str(caught.value)
        assert str(caught.value).startswith(f"{path}: ")


def test_a_model_with_a_part_of_its_own_is_one_line_for_info(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, path = tree(), tmp_path / "best.ckpt"
    content["vssn"]["model"]["given"] = ["encoder"]
    torch.save(content, path)
    assert main(["info", str(path)]) == 2
    assert re.fullmatch(r"vssn: error: encoder must be given: [^\n]*\n", capsys.readouterr().err)


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_a_run_whose_checkpoint_lost_its_score_is_not_continued(name: str, tmp_path: Path) -> None:
    whole, content = tree(), tree()
    del content["vssn"]["valid_elbo_per_frame"]
    for other in ("last.ckpt", "best.ckpt"):
        torch.save(content if other == name else whole, tmp_path / other)
    assert check_folder(tmp_path, check_config(SETTINGS, ""), resume=True) == 1
    with pytest.raises(CheckpointError, match=rf"{name}: expected its validation ELBO, got none"):
        make_good(tmp_path)


@pytest.mark.parametrize(
    "log",
    ["epoch,seconds\n1\n", "epoch,seconds\n1,x\n", "epoch,seconds\ninf,1\n", 'epoch,seconds\n1,"' + "x" * 140_000],
)
def test_info_of_a_checkpoint_beside_a_damaged_log(
    log: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(tree(), tmp_path / "best.ckpt")
    (tmp_path / "metrics.csv").write_text(log)
    (tmp_path / "score.json").write_text("[" * 100_000)
    assert main(["info", str(tmp_path / "best.ckpt")]) == 0
    captured = capsys.readouterr()
    assert "score.json              not readable" in captured.out
    assert captured.err == ""


@pytest.mark.parametrize("what", ["optimizer_states", "loops", "callbacks", "lr_schedulers", "state_dict"])
def test_training_does_not_go_on_from_what_lightning_cannot_take(what: str, tmp_path: Path) -> None:
    x = torch.zeros(2, 3, 4)
    config = {
        "model": {"hidden_size": 2, "latent_size": 1},
        "training": {"max_epochs": 1, "output": str(tmp_path / "run"), "accelerator": "cpu"},
    }
    vssn.fit(config, (x, x, x), verbose=False)
    last = tmp_path / "run" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    content[what] = {"model.x": torch.zeros(1)} if what == "state_dict" else 7
    torch.save(content, last)
    config["training"]["max_epochs"] = 2  # type: ignore[index]
    with pytest.raises(UserError) as caught:
        vssn.fit(config, (x, x, x), resume=True, verbose=False)
    assert str(caught.value).startswith(f"{last}: training cannot go on from it (")
