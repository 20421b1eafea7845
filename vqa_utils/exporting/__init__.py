"""Carry the series to where it runs: Kaggle, Colab, or one notebook with everything.

commands            Execute the commands that export, by their arguments
kaggle              Write what `kaggle datasets create` and `kaggle kernels push` take
_launcher_notebook  Make the launcher notebook
launcher            Start a run where its notebook is: machine, packages, run_all.py, submission.csv
inputs              Find data, a model and an earlier run among the inputs of a place
wheels              Download what an installation without network needs, without torch
one_notebook        Write one notebook with the whole series, and the package inside
by_hand             Start a run in a notebook
code                List the files that a run needs
"""
