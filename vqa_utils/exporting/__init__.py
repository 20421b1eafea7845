"""Carry the series to where it runs: Kaggle, Colab, or one notebook with everything.

kaggle    Write what `kaggle datasets create` and `kaggle kernels push` take
wheels    Download what an installation without network needs, without torch
launcher  Start a run where its notebook is: machine, packages, data, model, an earlier run
code      List the files that a run needs
"""
