"""Data: TFDS without TensorFlow, image folders, transforms on NumPy arrays, and a loader that resumes at any step."""
