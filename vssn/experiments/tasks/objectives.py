"""The objectives: one model trained on each of them, scored as those of music."""

from __future__ import annotations

from vssn.experiments.tasks.base import Column, Effort, Entry, Match, Task, draw_curves
from vssn.experiments.tasks.music import DETAILS, LABELS, SETS, score_music

PARTICLES = 4  # of the objectives that take some
_OF_PARTICLES = f"model.particles={PARTICLES}"
_OVERRIDES = {
    "elbo": (),
    "paper": (),
    "iwae": (_OF_PARTICLES,),
    "fivo": (_OF_PARTICLES,),
    "nasmc": (_OF_PARTICLES, "training.kl_start=1", "training.kl_anneal_updates=0"),
}

TASK = Task(
    name="objectives",
    title="The objectives",
    text="The same model trained on the strict bound (`elbo`), on the paper's formula (`paper`, the KLs halved, no "
    f"bound) and on {PARTICLES} weighted particles (`iwae`, `fivo`, `nasmc`), all scored by the same strict bounds: "
    "nats per time step of the test set, as those of music.",
    sets={"jsb": SETS["jsb"]},
    entries=tuple(
        Entry("jsb", f"VSSN, {objective}", "objectives", (f"model.objective={objective}", *overrides))
        for objective, overrides in _OVERRIDES.items()
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
    matches=(
        Match("VSSN, elbo", ("VSSN, paper",), "all else equal"),
        Match("VSSN, elbo", ("VSSN, iwae", "VSSN, fivo"), "all else equal, by updates and not by minutes"),
        Match("VSSN, elbo", ("VSSN, nasmc",), "which goes without annealing"),
    ),
    details=DETAILS,
    labels=LABELS
    | {
        "elbo, paper": "trained on the strict bound; on the formula that the paper prints, whose KLs are halved",
        "iwae, fivo, nasmc": f"trained on {PARTICLES} particles: the importance-weighted bound of whole paths; the "
        "estimate of a particle filter; the same filter's particles, with the inclusive divergence for the proposal",
    },
    effort=Effort(particles=100),
    quick_effort=Effort(particles=3, sequences=4),
    reads_data=True,
)
