"""`make demo`: trains a VSSN on films of a torque-driven pendulum, then forecasts films that it has not seen.

The model sees six frames of a test film and the torques, past and to come; it predicts the nine frames that follow.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from vssn.data.pendulum import IMAGE_SIZE, PendulumSet, configured_splits
from vssn.inference.filtering import squared_errors
from vssn.nn.interface import SequenceModel
from vssn.utils.command import check_folder, positive, run_command, threads, writing
from vssn.utils.evaluation_mode import evaluating, time_major
from vssn.utils.packages import needing
from vssn.utils.random import seeded

SEEN = 6
FILMS_SHOWN = 3


def forecast_films(model: SequenceModel, films: PendulumSet) -> tuple[Tensor, Tensor]:
    """The films [T, B, X], and the model's forecast of those frames that it has not seen: one path of its latents."""
    x, u = films.images.transpose(0, 1), films.controls.transpose(0, 1)
    with evaluating(model), time_major(model), seeded(0, x.device):
        forecast = model.forecast(x[:SEEN], len(x) - SEEN, u=u[:SEEN], u_future=u[SEEN:], sample=False)
    return x, forecast.x


def draw(x: Tensor, predicted: Tensor, model_error: Tensor, copy_error: Tensor, path: Path) -> None:
    """The figure: films above their forecasts, and the error over the frames ahead."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.2), layout="constrained")
    films, curve = figure.subfigures(2, 1, squeeze=False, height_ratios=[FILMS_SHOWN * 2, 4.2])[:, 0]
    films.suptitle(f"Pendulum: {SEEN} frames seen (framed), then truth above forecast")
    axes = films.subplots(2 * FILMS_SHOWN, len(x))
    for film in range(FILMS_SHOWN):
        for row, frames in enumerate((x, torch.cat((torch.full_like(x[:SEEN], torch.nan), predicted)))):
            for t, axis in enumerate(axes[2 * film + row]):
                axis.set(xticks=[], yticks=[])
                if row == 1 and t < SEEN:
                    axis.axis("off")
                    continue
                axis.imshow(frames[t, film].view(IMAGE_SIZE, IMAGE_SIZE), cmap="gray", vmin=0, vmax=1)
                for spine in axis.spines.values():
                    spine.set(color="tab:blue" if t < SEEN else "0.8", linewidth=2 if t < SEEN else 0.5)
        axes[2 * film][0].set_ylabel("truth", rotation=0, ha="right", va="center")
        axes[2 * film + 1][SEEN].set_ylabel("forecast", rotation=0, ha="right", va="center")
    axis = curve.subplots()
    ahead = range(1, len(model_error) + 1)
    axis.plot(ahead, copy_error, "o--", color="tab:gray", label="copy of the last frame seen")
    axis.plot(ahead, model_error, "o-", color="tab:blue", label="VSSN")
    axis.set(xlabel="frames ahead", ylabel="squared error\n(sum over 256 pixels)", ylim=(0, None), xticks=list(ahead))
    axis.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m vssn.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder of the run and the figure")
    parser.add_argument("--epochs", type=positive, help="training epochs, fewer for a quick look")
    parser.add_argument("--threads", metavar="N", type=threads, help="1 where other programs run (else all cores)")
    options = parser.parse_args(arguments)
    return run_command("demo", lambda: _demo(options))


def _demo(options: argparse.Namespace) -> int:
    from vssn.training.config import load_config

    # The demo may be run again: each run gets a folder of its own.
    folder = options.output / time.strftime("%Y-%m-%d-%H%M%S")
    overrides = [f"training.output={json.dumps(str(folder))}"]
    if options.epochs is not None:
        overrides.append(f"training.max_epochs={options.epochs}")
    config = load_config("demo", overrides)
    assert config.data.set == "pendulum"
    with writing("--output", options.output):
        check_folder(options.output)
    if options.threads is not None:
        torch.set_num_threads(options.threads)

    with needing("train"):  # by the figure, at the end
        import matplotlib  # noqa: F401

    # Lightning takes seconds to import; a wrong option is answered before.
    from vssn.training.checkpoints import load_model
    from vssn.training.fit import fit

    train, _, test = configured_splits(seed=config.data.seed, **config.data.own)
    films, frames, _ = train.images.shape
    print(
        f"Training a VSSN on {films} simulated films of a pendulum, {frames} frames of {IMAGE_SIZE} x {IMAGE_SIZE} "
        "pixels each ...",
        flush=True,
    )
    result = fit(config)
    model, _ = load_model(result.best_path)
    x, predicted = forecast_films(model, test)
    truth = x[SEEN:]
    model_error = squared_errors(predicted, truth)
    copy_error = squared_errors(x[SEEN - 1].expand_as(truth), truth)
    figure = options.output / "pendulum.png"
    with writing("--output", figure):
        draw(x, predicted, model_error, copy_error, figure)
    print(f"figure: {figure}")
    print(
        f"squared error per frame, {len(truth)} frames ahead on {x.shape[1]} test films: "
        f"VSSN {model_error.mean():.2f}, copy of the last frame {copy_error.mean():.2f} "
        f"({copy_error.mean() / model_error.mean():.1f} times as much)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
