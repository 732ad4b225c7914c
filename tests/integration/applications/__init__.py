"""Whole applications and the libraries that they are made with, on attached sessions."""
