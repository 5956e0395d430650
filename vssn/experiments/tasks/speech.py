"""Speech, ELBO and IWAE: nats per sequence in normalised units, bits per sample."""

from __future__ import annotations

from vssn.data.batching import sequence_loader
from vssn.data.speech import FRAME_SIZE, scale_of, speech_scores
from vssn.experiments.tasks.base import (
    Column,
    Detail,
    Effort,
    Match,
    Metrics,
    Task,
    draw_curves,
    first_sequences,
    peers,
    published_row,
    with_all,
)
from vssn.inference.scoring import evaluate, evaluate_bound
from vssn.nn.interface import SequenceModel
from vssn.training.config import Config


def score_speech(model: SequenceModel, config: Config, effort: Effort) -> Metrics:
    test = first_sequences(config.load_data().test, effort.sequences)
    scale = scale_of(test)
    assert scale is not None
    loader = sequence_loader(test, config.data.batch_size)
    elbo = evaluate(model, loader)
    iwae = evaluate_bound(model, loader, bound="iwae", particles=effort.particles)
    metrics: Metrics = {"particles": iwae.particles, "kl_z": elbo.kl_z, "kl_w": elbo.kl_w}
    metrics |= {"sequences": elbo.sequences, "frames": elbo.frames}
    for name, scores in (("elbo", elbo), ("iwae", iwae)):
        speech = speech_scores(scores.micro, scores.frames, scores.sequences, scale)
        metrics |= {f"{name}_nats": speech.nats_per_sequence, f"{name}_bits": speech.bits_per_sample}
    return metrics | {"sample_rate": scale.sample_rate, "mean": scale.mean, "std": scale.std}


_SETS = {"timit": "TIMIT", "blizzard": "Blizzard"}
_SHARED: dict[str, tuple[str, ...]] = dict.fromkeys(_SETS, ())
_PEERS = {"VSSN": "vssn", "SRNN": "srnn", "VRNN-Gauss": "vrnn", "RNN": "rnn", "RNN-AR": "ar"}

_COLUMNS = tuple(
    Column(
        f"{title} ({{test_{name}}} test sequences), {unit}", name, f"elbo_{key}", digits, name if key == "nats" else ""
    )
    for name, title in _SETS.items()
    for unit, key, digits in (("bits per sample", "bits", 3), ("nats per sequence", "nats", 0))
)

TASK = Task(
    name="speech",
    title="Speech",
    text="ELBO of one sample; IWAE with {particles} particles among the runs. Frames of {frame_size} samples. "
    "**Published figures are of the full sets, which need a licence (TIMIT's has 1,680 test sequences), and do not "
    "compare with ours of less**: with 20 test sequences TIMIT is NLTK's sample of it; in Blizzard's place stands any "
    "folder of one reader, at 22050 Hz that of LJ Speech. What was read is among the runs.",
    sets=_SETS,
    entries=(
        *peers("speech", _SHARED, _PEERS),
        *peers("speech", with_all(_SHARED, "model.likelihood=mixture"), {"VRNN-GMM": "vrnn"}),
        *peers("speech", with_all(_SHARED, "model.prior=standard"), {"VRNN-I-Gauss": "vrnn"}),
    ),
    score=score_speech,
    draw=draw_curves,
    headline=("elbo_bits", "elbo_nats"),
    columns=_COLUMNS,
    unit="ELBO; less is better",
    better=-1,
    compared=tuple(column for column in _COLUMNS if column.metric == "elbo_bits"),
    matches=(Match("VSSN", ("SRNN", "VRNN-Gauss", "VRNN-GMM", "VRNN-I-Gauss", "RNN", "RNN-AR"), "of one size"),),
    details=(
        Detail("IWAE-{particles}, bits per sample", "iwae_bits", 3),
        Detail("IWAE-{particles}, nats per sequence", "iwae_nats", 0),
        Detail("KL z", "kl_z", 2),
        Detail("KL w", "kl_w", 2),
        Detail("test sequences", "sequences", 0),
        Detail("test frames", "frames", 0),
        Detail("Hz", "sample_rate", 0),
        Detail("std in 16-bit steps", "std", 0),
    ),
    published=tuple(
        published_row(model, ("blizzard", "timit"), values, source, comparable=False)
        for model, values, source in (
            ("VSSN", ">=14141 >=65334", "VSSN, table 3"),
            ("SRNN (smooth, resq)", ">=11991 >=60550", "Fraccaro et al. 2016"),
            ("VRNN-Gauss", ">=9223 >=28805", "Chung et al. 2015"),
            ("VRNN-GMM", ">=9107 >=28982", "Chung et al. 2015"),
            ("RNN-GMM", "7413 26643", "Chung et al. 2015"),
            ("RNN-Gauss", "3539 -1900", "Chung et al. 2015"),
        )
    ),
    labels={
        "bits per sample": "the length of a code for the 16-bit samples; it includes the Jacobian of the normalisation",
        "nats per sequence": "of samples in normalised units: comparable only where the recordings, their lengths and "
        "their normalisation are the same",
        "-Gauss, -GMM, -AR": "an output of independent normals; of mixtures of them; of normals each of which sees the "
        "samples before it in the frame",
    },
    protocol={
        "Units of speech": "Nats per sequence are of samples in units of one mean and standard deviation, those of "
        "all training samples, so they change with the set and the lengths; bits per sample do not depend on the "
        "units. TIMIT: each utterance alone, cut to whole frames, from a zero state; Blizzard: half-second segments",
        "Autoregressive outputs": "Lai et al. (2019) find that a plain RNN whose output is autoregressive within the "
        "frame closes the gap to latents: RNN-AR is that row",
    },
    shown=("timit-training",),
    effort=Effort(particles=10),
    settings={"frame_size": FRAME_SIZE},
    reads_data=True,
)
