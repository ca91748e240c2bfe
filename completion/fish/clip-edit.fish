# Made by python -m tools.manual; make man makes it anew.
complete --no-files --keep-order --command clip-edit --arguments '(_cliptools_complete)'
