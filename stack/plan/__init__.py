"""What `oof` and `stack` would make of a config: which steps are complete or stale and why, and what they cost."""
