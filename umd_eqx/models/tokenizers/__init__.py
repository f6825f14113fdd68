"""Tokenizers, which encode images to latents and decode latents to images."""
