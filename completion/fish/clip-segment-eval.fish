# Made by python -m tools.manual; make man makes it anew.
complete --no-files --keep-order --command clip-segment-eval --arguments '(_cliptools_complete)'
