"""Building blocks of the package: types, paths, masks, errors, files, and the placement of arrays on devices."""
