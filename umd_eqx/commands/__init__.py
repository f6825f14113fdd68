"""The commands: each a function of the words of its command line that returns an exit code."""
