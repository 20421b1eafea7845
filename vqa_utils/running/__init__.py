"""Drive the series: the command line, the steps of a run, their execution, the terminal.

resolution       Resolve a command's run: folder, settings, data, origin
auto_settings    Replace "auto" by numbers for a run's data and machine
stages           List the series: files of each notebook, steps of a command
series           Execute the steps of a command: checks before, results after
runner           Run steps: reuse complete ones, execute the others in their order
_markers         Decide which steps --resume reuses: markers with settings, data, inputs and outputs
                 by hash
status           Say how far each step of a run is, and what is at work now
run_clock        Say a run's expected end, and keep the run within its time budget
run_page         Keep the page of a run up to date while it goes on; show it in a browser
checking         Check a run's data, model and machine, and load nothing
prediction       Answer another test set with a run's adapters
command_line/    Read run_all.py's command line
terminal/        Print lines of running notebooks, tables, plans and results
notebooks/       Execute notebooks: one, as often as it takes, or those of several folds at a time
cluster/         Run the notebooks of folds on several machines, through Ray
archive/         Keep what executed notebooks leave: their copies, and what they ran with
"""

import sys
from types import ModuleType

# Where JupyterLab has brought this package, jsonschema takes 1.4 s in each process to prepare for IRIs,
# which the schema of notebooks has not. An empty module in its place has nothing to prepare
sys.modules.setdefault("rfc3987_syntax", ModuleType("rfc3987_syntax"))
