"""Configurations and where they come from: `Frame`, `Batch`, readers, checks, statistics and the batch sampler."""
