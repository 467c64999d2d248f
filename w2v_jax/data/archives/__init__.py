"""Files that hold many recordings: where they are, and the bytes of one recording. Nothing is decoded here."""
