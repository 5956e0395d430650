"""Published figures, with their sources, to stand beside one's own. They are as the paper of VSSN cites them, except
where a note says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Published(NamedTuple):
    model: str
    values: Mapping[str, str]  # by column, as printed: ">=" for a bound, "~" for an estimate
    source: str
    note: str = ""


def _row(model: str, columns: tuple[str, ...], values: str, source: str, note: str = "") -> Published:
    return Published(model, dict(zip(columns, values.split(), strict=True)), source, note)


MUSIC_COLUMNS = ("nottingham", "jsb", "musedata", "piano_midi")
MUSIC = tuple(
    _row(model, MUSIC_COLUMNS, values, source, note)
    for model, values, source, note in (
        ("VSSN", ">=-2.344 >=-4.021 >=-5.725 >=-7.130", "VSSN, table 4", "bound and data not stated"),
        (
            "RNN-NADE",
            "~-2.31 ~-5.19 ~-5.60 ~-7.05",
            "Boulanger-Lewandowski et al. 2012",
            "micro, with the first frame",
        ),
        (
            "DMM",
            "~-2.770 ~-6.388 ~-6.831 ~-7.835",
            "Krishnan et al. 2016",
            "importance sampled, micro, with the first frame: comparable",
        ),
        ("STORN", "~-2.85 ~-6.93 ~-6.17 ~-7.15", "Bayer and Osendorfer 2014", ""),
        ("NASMC", "~-2.71 ~-3.98 ~-6.88 ~-7.62", "Gu et al. 2015", ""),
        (
            "SRNN",
            ">=-2.94 >=-4.74 >=-6.28 >=-8.20",
            "Fraccaro et al. 2016",
            "JSB at double time resolution, without the first frame: not comparable",
        ),
        ("TSBN", ">=-3.67 >=-7.48 >=-6.83 >=-7.94", "Gan et al. 2015", "macro"),
        (
            "HMSBN",
            ">=-5.13 >=-7.98 >=-8.90 >=-9.79",
            "Gan et al. 2015",
            "the columns of the paper's table 4 are in another order; put right here",
        ),
        ("RNN", "~-4.45 ~-8.72 ~-8.11 ~-8.34", "Boulanger-Lewandowski et al. 2012", "micro, with the first frame"),
    )
)

SPEECH_COLUMNS = ("blizzard", "timit")
SPEECH = tuple(
    _row(model, SPEECH_COLUMNS, values, source)
    for model, values, source in (
        ("VSSN", ">=14141 >=65334", "VSSN, table 3"),
        ("SRNN (smooth, resq)", ">=11991 >=60550", "Fraccaro et al. 2016"),
        ("VRNN-Gauss", ">=9223 >=28805", "Chung et al. 2015"),
        ("VRNN-GMM", ">=9107 >=28982", "Chung et al. 2015"),
        ("RNN-GMM", "7413 26643", "Chung et al. 2015"),
        ("RNN-Gauss", "3539 -1900", "Chung et al. 2015"),
    )
)

BALLS_COLUMNS = ("error",)
BALLS = tuple(
    Published(model, {"error": value}, source)
    for model, value, source in (
        ("PGN (MSE)", "0.65 ± 0.11", "Lotter et al. 2015"),
        ("VSSN", "0.74 ± 0.25", "VSSN, table 2"),
        ("DTSBN", "2.79 ± 0.39", "Gan et al. 2015"),
        ("TSBN", "3.07 ± 0.40", "Gan et al. 2015"),
        ("SRTRBM", "3.31 ± 0.33", "Mittelman et al. 2014"),
    )
)

PENDULUM_COLUMNS = ("sin", "cos", "velocity")
PENDULUM = tuple(
    _row(model, PENDULUM_COLUMNS, values, source)
    for model, values, source in (
        ("VSSN", ".973 .991 .930", "VSSN, table 1"),
        ("DVBF-LL", ".961 .982 .916", "Karl et al. 2016"),
        ("DKF", ".929 .979 .035", "Karl et al. 2016"),
    )
)
