"""Drive the series: the command line, the steps of a run, their execution, the terminal.

arguments     Parse run_all.py's command line. Standard library only
resolution    Resolve a command's run: folder, settings, data, origin
stages        List the series: files of each notebook, steps of a command
runner        Run steps: reuse complete ones, folds side by side, smaller settings after
              out-of-memory
_markers      Decide which steps --resume reuses: markers with settings, data, inputs and outputs
              by hash
archive/      Keep what executed notebooks leave: their copies, and what they ran with
execution     Execute one notebook through papermill, in this process or in one with its share of
              the machine
kernels       Start kernels before their notebooks, which find there what they import
prediction    Answer another test set with a run's adapters
plan_table    Print the memory plan and the expected minutes
results       Print a run's scores, baselines and calibration, and the paths of its files
side_by_side  Run steps of folds side by side, each in the next free process
terminal      Print a live line for each running notebook (step, loss, pace, time left), and tables
"""
