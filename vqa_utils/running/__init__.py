"""Drive the series: the command line, the steps of a run, their execution, the terminal.

arguments        Parse run_all.py's command line. Standard library only
_argument_types  Read the values of its options
_argument_export Add the options of the commands that export
resolution       Resolve a command's run: folder, settings, data, origin
auto_settings    Replace "auto" by numbers for a run's data and machine
stages           List the series: files of each notebook, steps of a command
series           Execute the steps of a command: checks before, results after
runner           Run steps: reuse complete ones, execute the others in their order
_markers         Decide which steps --resume reuses: markers with settings, data, inputs and outputs
                 by hash
run_clock        Say a run's expected end, and keep the run within its time budget
checking         Check a run's data, model and machine, and load nothing
prediction       Answer another test set with a run's adapters
terminal/        Print lines of running notebooks, tables, plans and results
notebooks/       Execute notebooks: one, as often as it takes, or those of several folds at a time
cluster/         Run the notebooks of folds on several machines, through Ray
archive/         Keep what executed notebooks leave: their copies, and what they ran with
"""
