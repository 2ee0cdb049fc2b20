"""What is in data sets, before anything trains on them: counts, sizes, doubts, and what to set."""
