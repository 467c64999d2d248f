"""From a method and a config to a trained run: updates, sharding, checkpoints, the folder of the run, its metrics."""
