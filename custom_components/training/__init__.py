"""Handlers for MONAI's trainers: checkpoints, schedules, logs, scores."""
