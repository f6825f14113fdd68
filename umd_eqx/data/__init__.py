"""Data: TFDS without TensorFlow, image folders, transforms on numpy arrays, and a loader that resumes at any step."""
