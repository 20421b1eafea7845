"""Check that a model can be loaded, before any GPU time is spent.

_folder  Find what is missing, torn or of another format in a model's folder
_hub     Ask the hub for a model's files; turn its errors into words that help
check    Check a model by name or folder, and read its config.json
"""
