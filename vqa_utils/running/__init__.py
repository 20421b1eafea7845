"""Drives the series: the command line, the steps of a run, their execution, the terminal.

arguments   The commands of run_all.py, and the options of each. Standard library only
execution   One notebook through papermill: executed into the archive, in this process or in one with its share of the machine
lock        One command at a time works on a run
plan_table  Prints the memory plan and the expected minutes
prediction  Answers to another test set, by the adapters that a run has trained
resolution  A run's folder: which one a command means, its settings, its origin, and what its data is known by
results     Prints the scores of a run, its baselines and calibration, and the paths of its files
runner      Runs the steps of a run: what is whole is reused, folds go side by side, and an out-of-memory error takes a rung
stages      The series as data: what each notebook reads and writes, and which steps a command selects. Standard library only
terminal    Prints a live line for each running notebook (step, loss, pace, time left), and tables
timings     Reads the seconds of each archived notebook: kernel start, imports, work
"""
