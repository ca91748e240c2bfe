"""Effects of units on the output, in factored form (both papers)."""
