"""Effects of units on the output of CLIP's image tower, in factored form: the equations of both papers, one file a family."""
