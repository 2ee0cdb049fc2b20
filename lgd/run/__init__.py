"""One run from its configuration to its results: output folder, resume, evaluations, scoring process."""
