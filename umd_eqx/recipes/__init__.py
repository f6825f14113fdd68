"""Configurations: their types, their serialisation, and the presets of every command."""
