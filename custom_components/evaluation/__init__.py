"""Measures, pictures and pages of registrations."""
