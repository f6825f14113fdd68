"""The ViT auto-encoder that every published system trains."""
