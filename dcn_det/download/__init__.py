"""Download of data sets and weights: resumable, verified, extracted safely."""
