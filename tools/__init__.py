"""Tools of the checkout: manual pages, figures of the house, outputs compared."""
