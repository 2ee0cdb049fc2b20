"""Importers and exporters of foreign weights."""
