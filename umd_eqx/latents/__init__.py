"""Latents of images: encoded once and stored, or encoded on the way to the network."""
