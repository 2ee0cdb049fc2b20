"""The engine: optimizers, checkpoints, metrics, loop, evaluation run. No detector names in here."""
