"""One run from its configuration to its results: its folder, resume, evaluations, scoring process."""
