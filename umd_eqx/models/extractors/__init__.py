"""Feature extractors: networks in whose features sets of images are compared."""
