"""Corpora that `prepare` writes: recordings cut, resampled and stored as FLAC in files of many recordings."""
