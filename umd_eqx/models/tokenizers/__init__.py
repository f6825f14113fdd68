"""Tokenizers, which make latents of images and images of latents."""
