"""What everything else is made of: types, paths, masks, errors, files, and arrays on devices."""
