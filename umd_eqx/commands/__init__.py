"""The commands. Each is a function that takes its command-line arguments and returns an exit code."""
