"""Memory Mosaics: train, measure, run and read networks of associative memories."""

__version__ = "0.1.0"
