"""Reading weights that were not written by this package's own trainer."""
