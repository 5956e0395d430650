"""From a YAML file to a trained model: configuration, trainer, checkpoints, the folder of a run."""

from vssn.utils.late import modules_of

__getattr__ = modules_of(__name__)
