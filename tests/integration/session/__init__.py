"""Attached sessions against real databases."""
