"""The dialects in which tools keep transforms, one file each."""
