"""File formats: audio, extracted features, TFRecord, and corpora that this package makes."""
