"""The two objectives: models trained on either one, scored as those of music."""

from __future__ import annotations

from vssn.experiments.tasks.base import Column, Effort, Entry, Match, Task, draw_curves
from vssn.experiments.tasks.music import DETAILS, LABELS, SETS, score_music

TASK = Task(
    name="objectives",
    title="The two objectives",
    text="The same model trained on the strict bound (`elbo`) and on the paper's formula (`paper`, the KLs halved, no "
    "bound), both scored by the same strict bounds: nats per time step of the test set, as those of music.",
    sets={"jsb": SETS["jsb"]},
    entries=tuple(
        Entry("jsb", f"VSSN, {objective}", "objectives", (f"model.objective={objective}",))
        for objective in ("elbo", "paper")
    ),
    score=score_music,
    draw=draw_curves,
    headline=("iwae_micro", "elbo_micro"),
    columns=(
        Column("JSB chorales, IWAE-{particles}", "jsb", "iwae_micro", 3),
        Column("JSB chorales, ELBO", "jsb", "elbo_micro", 3),
    ),
    unit="nats per time step; more is better",
    better=1,
    matches=(Match("VSSN, elbo", ("VSSN, paper",), "all else equal"),),
    details=DETAILS,
    labels=LABELS
    | {
        "elbo, paper": "trained on the strict bound; on the formula that the paper prints, whose KLs are halved",
    },
    effort=Effort(particles=100),
    quick_effort=Effort(particles=3, sequences=4),
    reads_data=True,
)
