"""Pictures with the truth about them, from every kind of place that has it."""
