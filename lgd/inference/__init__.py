"""A detector over pictures: detect on test sets, collect what was found, draw it."""
