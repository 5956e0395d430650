"""A word about data whose unit a model would have to learn."""

from __future__ import annotations

import inspect
import warnings
from itertools import islice

from vssn.data.splits import Splits, in_memory
from vssn.nn.interface import SequenceModel
from vssn.utils.scaling import Scaling
from vssn.utils.values import REAL

LOOKED_AT = 256  # training sequences


def warn_of_scale(splits: Splits, model: SequenceModel, own: bool) -> None:
    """A warning of one line where real numbers far from unit scale come to a model that does not standardise them.

    Args:
        own: the model came from Python, in the place of a configuration.
    """
    train = splits.train
    if model.likelihood.support != REAL or getattr(model, "scaling", None) is not None or train.transform is not None:
        return
    items = list(islice(in_memory(train), LOOKED_AT))
    if not items:
        return
    controls = [u for _, u in items if u is not None] if model.control_size else []
    far = Scaling.of([x for x, _ in items], controls or None).far_from_unit()
    if far is None:
        return
    remedy = "standardise it beforehand"
    if "scaling" in inspect.signature(type(model)).parameters:
        what = "make the model with scaling=vssn.Scaling.of(the training sequences)"
        remedy = what if own else "set data.standardise: true"
    warnings.warn(
        f"the training data is far from unit scale, {far}: it is learnt slowly, or not at all; {remedy}", stacklevel=4
    )
