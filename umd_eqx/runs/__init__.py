"""Runs, from configuration to report, and loading of trained networks and tokenizers."""
