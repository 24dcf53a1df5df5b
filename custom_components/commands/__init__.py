"""The commands of `morphzoo`, one file each."""
