"""What a command prints.

console     Make the terminal: drawn anew where it can be, lines in a notebook or a file
live        Print a live line for each running notebook: step, loss, pace, time left
fitting     Fit a table into the terminal's width without breaking a word
tables      Print tables, presets and settings
plan_table  Print the memory plan and the expected minutes
results     Print a run's scores, baselines and calibration, and the paths of its files
"""
