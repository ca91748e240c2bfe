"""The Python front: the work of the commands as functions, which `import cliptools` offers."""
