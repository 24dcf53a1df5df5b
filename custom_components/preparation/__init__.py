"""From scans as a scanner gives them to images that a training reads: cleaned, aligned, normalised, looked at."""
