"""Data: TFDS folders read without TensorFlow, transforms on numpy arrays, and a loader that resumes at any step."""
