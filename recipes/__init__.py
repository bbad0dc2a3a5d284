"""The four programs, each also a console script, and a folder of YAML per model."""
