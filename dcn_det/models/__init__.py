"""Detectors and their parts.

Every part takes explicit arguments and can be used alone; ``build.py`` is the only file that reads settings.
"""
