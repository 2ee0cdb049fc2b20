"""How fast a training step, its loader and the machine are."""
