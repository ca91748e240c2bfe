"""The equations of both papers written out a second time, and what the commands write held against them."""
