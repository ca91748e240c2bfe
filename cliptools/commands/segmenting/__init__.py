"""The parts of clip-segment: a model that segments, images it segments, and how well it does."""
