"""Image towers: what effects and methods need of a tower, and an adapter for each kind of tower."""
