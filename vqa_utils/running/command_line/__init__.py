"""Read run_all.py's command line. Standard library only.

arguments  Parse it: the commands, and what they have in common
_options   Add the options of the commands
_exports   Add the options of the commands that export
_types     Read the values of options
"""
