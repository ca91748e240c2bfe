"""Where in an image a text is: heat maps over patches by several methods, and what becomes of them.

A method is two functions (heat_maps.py): `look` at images once, then `scores` of any texts at every patch.
"""
