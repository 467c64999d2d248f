"""File formats: audio, extracted features, and corpora that this package makes."""
