"""What makes the lesson fast and safe: files, decoding, backbones, the feature store, checkpoints, fast equivalents."""
