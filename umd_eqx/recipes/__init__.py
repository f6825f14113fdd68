"""Configurations as values: their types, their dumps, and the presets of every command."""
