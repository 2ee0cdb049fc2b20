"""Configuration: the typed tree and its YAML surface."""
