"""Tools of the checkout: they make manual pages, count properties of the code, and compare outputs."""
