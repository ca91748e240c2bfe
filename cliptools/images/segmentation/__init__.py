"""Pictures with masks or label maps as ground truth, from folders, archives, scenes and data sets."""
