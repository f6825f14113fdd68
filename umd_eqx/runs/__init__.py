"""A run from its configuration to its report, and everything that opens one."""
