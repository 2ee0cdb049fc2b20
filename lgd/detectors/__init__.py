"""Detectors, all behind the protocol of `protocol.py`."""
