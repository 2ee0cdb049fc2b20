"""Whether the batch that needs the most memory fits, tried before training begins."""
