"""Files, streams and records: how bundles, lines and settings are written and read."""
