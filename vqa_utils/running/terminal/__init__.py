"""What a command prints.

console     Make the terminal: drawn anew where it can be, lines in a notebook or a file
events      Tell a program what a command does: an event a line, as JSON
live        Print a live line for each running notebook: step, loss, pace, time left
fitting     Fit a table into the terminal's width without breaking a word
tables      Print tables, presets and settings
whole_run   Describe the whole run in a line: notebooks, time left, GPU memory
plan_table  Print the memory plan and the expected minutes
results     Print a run's scores, baselines and calibration, and its end
"""
