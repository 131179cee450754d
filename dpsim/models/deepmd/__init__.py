"""DeePMD-kit's files: reading and writing portable models, reading training checkpoints. See docs/model-file.md."""
