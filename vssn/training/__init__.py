"""From a YAML file to a trained model: configuration, trainer, checkpoints, the folder of a run."""
