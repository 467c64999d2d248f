"""Speech units: k-means over frames of speech, the units that it gives, and what they tell about letters or phones."""
