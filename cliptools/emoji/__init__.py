"""The embedded world: scenes of emoji, drawn with captions and exact masks."""
