"""Trained models as other libraries want them, one file for each."""
