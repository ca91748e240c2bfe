"""Effects measured over a stream of images: statistics that are exact, in memory that does not grow."""
