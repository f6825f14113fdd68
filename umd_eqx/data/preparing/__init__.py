"""Preparation of data sets: from original archives or folders to TFDS data in array_record files."""
