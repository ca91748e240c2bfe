"""Inputs and checks of test_decompose.py that other tests share."""

WORDS = ("cat", "dog", "vacuum cleaner", "snow", "motorhome", "yacht", "cirrus", "frost", "cedar", "gelatin", "sour", "advent")
