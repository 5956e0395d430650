"""What is done with a trained model: scores, bounds from weighted particles, filtering and predictions."""

from vssn.utils.late import modules_of

__getattr__ = modules_of(__name__)
