"""What the pages and the READMEs say outside of the blocks that run: names, commands, keys and calls are checked
against the code, and README's own lines are run."""

from __future__ import annotations

import argparse
import ast
import contextlib
import inspect
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pages import DOCS, read_page

import vssn
import vssn_kernels
from vssn import cli
from vssn.inference.streaming import Filter
from vssn.likelihoods import LIKELIHOODS
from vssn.training import sections
from vssn.training.config import check_config

ROOT = DOCS.parent
TEXTS = [ROOT / "README.md", ROOT / "vssn_kernels/README.md", *sorted(DOCS.rglob("*.md"))]
EVERY = pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).with_suffix("").as_posix())
_FENCED = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
# What spans of text call their things.
KINDS: dict[str, Any] = {
    "model": vssn.VSSN,
    "forecaster": vssn.Forecaster,
    "score_samples": vssn.Forecaster.score_samples,
    "rssm": vssn.RSSMLayer,
    "posterior": vssn.RSSMState,
    "rnn": vssn.GRU.forward,
    "filter": Filter,
    "vssn": vssn,
    "vssn_kernels": vssn_kernels,
}


def spans(path: Path) -> list[str]:
    """Code within lines."""
    text = _FENCED.sub("", path.read_text(encoding="utf-8"))
    return [span.replace("\\|", "|") for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)]


def names(text: str) -> set[str]:
    """vssn.this.and_that, but for files, and modules to run."""
    found = re.findall(r"(?<![\w/.-])(?<!-m )vssn(?:_kernels)?(?:\.[A-Za-z]\w*)+(?![\w/])", text)
    return {name for name in found if not re.search(r"\.(md|png|csv|yaml|py)$", name)}


def unreachable(wanted: set[str]) -> str:
    """Those that `import vssn, vssn_kernels` does not bring, in a process of its own."""
    code = f"""
import vssn, vssn_kernels
from operator import attrgetter
for name in {sorted(wanted)!r}:
    try:
        attrgetter(name.partition(".")[2])({{"vssn": vssn, "vssn_kernels": vssn_kernels}}[name.partition(".")[0]])
    except AttributeError as error:
        print(name, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout


def test_every_dotted_name_is_there_after_the_import() -> None:
    wanted = {name for path in TEXTS for name in names(path.read_text(encoding="utf-8"))}
    assert {"vssn.inference.metrics", "vssn.export", "vssn.Scaling", "vssn_kernels.keep_memory"} <= wanted
    assert unreachable(wanted) == ""


def test_every_dotted_name_of_the_benchmarks_is_there_after_the_import() -> None:
    assert unreachable(names((ROOT / "benchmarks/README.md").read_text(encoding="utf-8"))) == ""


def test_what_is_not_there_is_found() -> None:
    assert names("`vssn.no.such_thing`, python -m vssn.demo, [x](vssn.md), vssn.fit(x).") == {
        "vssn.no.such_thing",
        "vssn.fit",
    }
    assert unreachable({"vssn.fit", "vssn.keep_memory"}).startswith("vssn.keep_memory ")


def test_the_reference_has_all_that_is_public() -> None:
    """The members of a module that it names stand there too."""
    text = "".join(path.read_text(encoding="utf-8") for path in DOCS.glob("api/*.md"))
    there = set(re.findall(r"^::: (\S+)", text, re.MULTILINE))
    public = {f"{package.__name__}.{name}" for package in (vssn, vssn_kernels) for name in package.__all__}
    public |= {likelihood.__module__ for likelihood in LIKELIHOODS.values()}
    public |= {"vssn.export", "vssn.inference.metrics", "vssn.inference.streaming.Filter"}
    assert {name for name in public - there if not name.endswith("__")} == set()


def commands(path: Path) -> Iterator[list[str]]:
    """`vssn ...` in lines and in blocks of a shell, those that are not run too; a | b | c as three."""
    lines = [
        line
        for language, code in _FENCED.findall(path.read_text("utf-8"))
        if language == "sh"
        for line in code.split("\n")
    ]
    for part in (part.strip() for line in [*spans(path), *lines] for part in line.split("&&")):
        if part.startswith("vssn "):
            words = shlex.split(part.split(">")[0], comments=True)
            for verb in words[1].split("|"):
                yield [verb, *words[2:]]


def checked(words: list[str]) -> None:
    """Raises SystemExit unless it parses; a bare verb is one that there is."""
    parser = cli.make_parser()
    if len(words) > 1 or words[0].startswith("-"):
        with contextlib.redirect_stdout(io.StringIO()):
            options = parser.parse_args(words)
        for setting in getattr(options, "set", []):
            assert is_a_key(setting.partition("=")[0]), setting
    else:
        found = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        assert words[0] in found.choices, words


@EVERY
def test_commands_are_those_of_the_program(path: Path) -> None:
    for words in commands(path):
        if words in (["--version"], ["COMMAND", "--help"]):
            continue
        # what a text leaves out: where results go
        bare = words[0] in ("forecast", "impute", "generate", "latents", "score") and len(words) > 1
        checked(words if not bare or "--output" in words else [*words, "--output", "out"])


@pytest.mark.parametrize("wrong", ["train --data x", "forecast a.ckpt --horizon 3 --output x", "scores"])
def test_a_wrong_command_is_found(wrong: str) -> None:
    with pytest.raises((SystemExit, AssertionError)):
        checked(wrong.split())


def is_a_key(key: str) -> bool:
    section, _, rest = key.partition(".")
    if section == "training":
        inner = sections.ConstraintSection if rest.startswith("constraint.") else sections.TrainingSection
        return rest.rpartition(".")[2] in inner.model_fields
    if section == "data":
        return rest == "set" or any(rest in sections.data_section(name).model_fields for name in sections.data_sets())
    return any(rest in sections.model_section({"name": name}).model_fields for name in sections.MODELS)


@EVERY
def test_keys_are_those_of_a_configuration(path: Path) -> None:
    methods = {name for cls in (vssn.VSSN, vssn.RSSM) for name in dir(cls)} | {"safetensors"}
    for span in spans(path):
        for key in re.findall(r"(?<![\w./])((?:data|training|model)\.[a-z_]+(?:\.[a-z_]+)*)(?![\w(./])", span):
            section, _, name = key.partition(".")
            assert is_a_key(key) or (section == "model" and name in methods), f"{key} in {span}"


def test_pieces_of_a_configuration_are_taken() -> None:
    pieces = [
        code for path in TEXTS for language, code in _FENCED.findall(path.read_text("utf-8")) if language == "yaml"
    ]
    assert pieces
    for piece in map(yaml.safe_load, pieces):
        check_config({"data": {"set": "given"}, "model": {"hidden_size": 4, "latent_size": 2}, **piece}, "a page")


def called(function: str) -> Callable[..., Any] | None:
    """What a call in a text means; None: nothing of ours, or a word of mathematics."""
    first, *rest = function.replace("()", "").split(".")
    if first not in KINDS or (not rest and first not in ("rnn", "score_samples")):
        return getattr(vssn, function, None) if function[:1].isupper() and not rest else None
    thing = KINDS[first]
    for name in rest:
        thing = getattr(thing, name)
    return thing  # type: ignore[no-any-return]


def check_call(call: ast.Call) -> None:
    """Raises where the signature does not take what is given."""
    thing = called(ast.unparse(call.func)) if isinstance(call.func, ast.Name | ast.Attribute) else None
    if thing is None:
        return
    signature = inspect.signature(thing)
    parameters = list(signature.parameters)
    count = len(call.args) + (parameters[:1] == ["self"])
    named = [keyword.arg for keyword in call.keywords if keyword.arg is not None]
    try:
        signature.bind_partial(*[None] * count, **dict.fromkeys(named))
    except TypeError as error:
        raise AssertionError(f"{ast.unparse(call)}: {error}") from None


@EVERY
def test_calls_fit_the_signatures(path: Path) -> None:
    for span in spans(path):
        with contextlib.suppress(SyntaxError):
            for node in ast.walk(ast.parse(span)):
                if isinstance(node, ast.Call):
                    check_call(node)


@pytest.mark.parametrize("wrong", ["filter.step(frame, mask_t=seen)", "model.latents(x, sort='smooth')"])
def test_a_wrong_call_is_found(wrong: str) -> None:
    with pytest.raises(AssertionError):
        check_call(ast.parse(wrong).body[0].value)  # type: ignore[attr-defined]


def test_the_lines_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of Python in the table of jobs, in turn, beside what a reader has."""
    monkeypatch.chdir(tmp_path)
    real_fit = vssn.fit
    monkeypatch.setattr(vssn, "fit", lambda *given: real_fit(*given, training=TRAINING, verbose=False))
    monkeypatch.setattr(vssn, "Forecaster", partial(vssn.Forecaster, max_epochs=1))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = text.split("## Jobs")[1].split("##")[0].splitlines()
    ran = 0
    for row in rows:
        lines = [span for span in re.findall(r"`([^`]+)`", row) if row.startswith("|") and not span.startswith("vssn ")]
        names: dict[str, Any] = what_a_reader_has()
        for line in lines:
            if line.startswith("."):
                assert hasattr(names["forecaster"], line.removeprefix(".")), line
                continue
            exec(compile(line, row, "exec"), names)
            ran += 1
        assert isinstance(names["model"], torch.nn.Module), row
    assert ran >= 12
    before = torch.nn.Sequential(torch.nn.GRU(3, 4))
    exec("vssn.replace_gru(model)", {"vssn": vssn, "model": before})
    assert type(before[0]) is vssn.GRU


TRAINING = {"max_epochs": 1, "accelerator": "cpu"}


def what_a_reader_has() -> dict[str, Any]:
    """By the names of README's lines."""
    x = torch.randn(12, 6, 2)  # [T, B, X]; and as six sequences of 12 frames
    rows = list(x.transpose(0, 1))
    rssm = vssn.RSSMLayer(embed_size=5, action_size=1, hidden_size=4, latent_size=3)
    policy = torch.nn.Linear(7, 1)
    return {
        "vssn": vssn,
        "x": x,
        "x_t": torch.randn(1, 2),
        **{"train": rows[:4], "valid": rows[4:5], "test": rows[5:]},
        "model": vssn.VSSN(2, 4, 3, likelihood="gaussian"),
        "rssm": rssm,
        **{"embed": torch.randn(6, 3, 5), "action": torch.randn(6, 3, 1), "is_first": torch.zeros(6, 3).bool()},
        "policy": lambda state: policy(state.features),
        "forecaster": None,
    }


def test_the_block_of_the_readme_runs() -> None:
    (block,) = [block for block in read_page(ROOT / "README.md").blocks if block.language == "python"]
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(block.code, "README.md", "exec"), {})
