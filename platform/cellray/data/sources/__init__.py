"""Readers of files of counts, one a format, and what is checked before they read."""
