"""Refuse a model without the files to load it, before any GPU time is spent.

_folder   Find missing and torn files in a model's folder, and other formats
_hub      Ask the hub for a model's files; explain its errors
check     Check a model by name or folder, and read its config.json
identity  Know a run's model again in another folder
"""
