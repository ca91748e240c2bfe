"""What clip-gallery shows: units, images, and records of other commands."""
