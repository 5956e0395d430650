"""The world model's task: what the simulator does from a film's true state, and what an informed model scores."""

from __future__ import annotations

from pathlib import Path

import torch

from vssn import RSSM
from vssn.data.pendulum import MAX_TORQUE, PendulumSet, make_pendulum
from vssn.demo import SEEN
from vssn.experiments.figures import Plan, draw_plans
from vssn.experiments.tasks.world_model import imagined, others, recorded, simulated


def films() -> PendulumSet:
    return make_pendulum(5, 15, seed=3)


def test_the_simulator_goes_on_as_the_film_does_under_its_own_torques() -> None:
    given = films()
    own = recorded(given)
    again = simulated(given, own.torque)
    assert own.frames.shape == again.frames.shape == (15 - SEEN, 5, 256)
    torch.testing.assert_close(again.frames, own.frames, rtol=0, atol=2e-4)  # the states are kept in float32


def test_other_torques_lead_elsewhere_the_later_the_further() -> None:
    given = films()
    own, other = recorded(given), others(given)
    assert float(other.torque.abs().max()) <= MAX_TORQUE
    apart = (own.frames - other.frames).square().sum(-1).mean(1)
    assert apart[-1] > apart[0] > 0
    assert others(given).torque.equal(other.torque)
    assert not others(given, seed=1).torque.equal(other.torque)


def test_what_is_imagined_follows_the_torques_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, given = RSSM(256, 8, 3, control_size=1), films()
    torque = recorded(given).torque
    changed = torch.cat((torque[:4], -torque[4:]))
    one, other = (imagined(model, given, told) for told in (torque, changed))
    assert one.shape == (15 - SEEN, 5, 256)
    assert one[:4].equal(other[:4])
    assert (one[4] != other[4]).any()
    plan = Plan("torque", given.images[0, :SEEN], recorded(given).frames[:, 0], one[:, 0])
    draw_plans([plan, plan], tmp_path / "plans.png", size=16, title="Pendulum")
    assert (tmp_path / "plans.png").stat().st_size > 5000
