"""Drives the series: the command line, the steps of a run, their execution, the terminal.

arguments   The commands of run_all.py and the options of each. Standard library only
resolution  The run that a command means: its folder, its settings, its data and its origin
stages      The series as data: files of each notebook, steps of a command
runner      Runs steps: whole ones are reused, folds go side by side, memory errors take a rung
_markers    The state of steps: markers that name settings, data, inputs and outputs by hash
execution   One notebook through papermill, in this process or in one with its share of the machine
prediction  Answers to another test set, by the adapters that a run has trained
lock        One command at a time works on a run
plan_table  Prints the memory plan and the expected minutes
results     Prints a run's scores, baselines and calibration, and the paths of its files
terminal    Prints a live line for each running notebook (step, loss, pace, time left), and tables
timings     Reads the seconds of each archived notebook: kernel start, imports, work
"""
