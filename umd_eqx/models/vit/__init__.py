"""The ViT auto-encoder of the published systems."""
