"""JSB's grid: the same models on the same chorales, on quarter notes and on eighth notes; what the grid alone does."""

from __future__ import annotations

from vssn.experiments.tasks.base import Column, Effort, Match, Published, Shift, Task, draw_curves, peers
from vssn.experiments.tasks.music import DETAILS, LABELS, SCHEDULES, TERMS, score_music
from vssn.experiments.tasks.music import TASK as MUSIC

# Gradients go back over the same music on either grid, and an epoch has the same updates.
_CHUNKS = {"jsb_quarters": 100, "jsb_eighths": 200}
_CITED = ("VSSN", "NASMC", "SRNN", "RNN-NADE")

_QUARTERS, _EIGHTHS = (
    Column(header, name, "iwae_micro", 3, name)
    for header, name in (("quarter notes", "jsb_quarters"), ("eighth notes", "jsb_eighths"))
)

TASK = Task(
    name="jsb_grid",
    title="JSB's grid",
    text="Log-likelihood in nats per time step, as in the table of music (IWAE with {particles} particles, micro), of "
    "Bach's chorales in the corpus of music21 (extra `chorales`). The two columns in front have the same pieces in the "
    "same split, which is our own; a frame is a quarter note in one, an eighth note in the other. Sizes, schedule and "
    "updates in an epoch are the same. Behind them JSB itself, on quarter notes, and what is published as JSB.",
    sets={"jsb_quarters": "quarter notes", "jsb_eighths": "eighth notes"},
    entries=peers(
        "music",
        {name: (*SCHEDULES["jsb"], f"training.chunk_length={frames}") for name, frames in _CHUNKS.items()},
        {"VSSN": "vssn", "VSSN-NADE": "vssn-nade", "RNN-NADE": "rnn-nade"},
    ),
    score=score_music,
    draw=draw_curves,
    headline=("iwae_micro", "elbo_micro"),
    columns=(_QUARTERS, _EIGHTHS, Column("JSB's own files, or as published", "jsb", "iwae_micro", 3, "jsb")),
    unit="nats per time step, IWAE-{particles}; more is better",
    better=1,
    compared=(_QUARTERS, _EIGHTHS),
    matches=(Match("VSSN-NADE", ("RNN-NADE",), TERMS),),
    details=DETAILS,
    published=(
        *(
            row._replace(values={"jsb": row.values["jsb"]}, comparable=False)
            for row in MUSIC.published
            if row.model in _CITED
        ),
        Published(
            "RNN-NADE, of others",
            {"jsb_quarters": "~-5.03", "jsb_eighths": "~-3.78"},
            "as a list of results by others has it",
            "JSB's own split on both grids",
            comparable=False,
        ),
    ),
    cites_all=True,
    beside={"jsb": "music"},
    shift=Shift("the grid", "jsb_quarters", "jsb_eighths", frames=2, unit="nats a step", cited="jsb"),
    labels={
        **LABELS,
        "quarter notes, eighth notes": "the grid of time: a frame has the notes that sound at its beginning",
    },
    effort=Effort(particles=100),
    quick_effort=Effort(particles=3, sequences=4),
    reads_data=True,
)
