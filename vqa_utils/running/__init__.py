"""How run_all.py drives the series: arguments, stages, notebooks executed, what the terminal shows.

arguments   The command line of run_all.py: what can be said, and which of it a command would not heed. Standard library only
execution   One notebook through papermill, in this process or in one with its share of the machine
lock        One command at a time works on a run
plan_table  The memory plan and the expected minutes in the terminal. Apart from the other tables, so that it comes at once
_markers    The state of steps: markers that name settings, data, inputs and outputs by hash
prediction  Answers to another test set, by the adapters that a run has trained
resolution  A run's folder: the one that a command means, its settings, its data and its origin
results     What a run came to, in the terminal: scores, baselines, calibration, and where the files are
runner      Runs the steps: whole ones are reused, folds go side by side, memory errors take a rung
stages      The series as data: files of each notebook, steps of a command. Standard library only
terminal    What the terminal shows: a line for the running notebook (step, loss, pace, time left), and the results' tables
timings     Where a run's time went: papermill's clock in the archived notebooks, split into kernel start, imports and work
"""
