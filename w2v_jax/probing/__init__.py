"""Linear probes: what frozen features know about letters, speakers and transcripts."""
