"""Latents of images, either encoded once and stored or encoded during training."""
