"""Keep the folder of a run, runs/<run_id>/: paths, atomic files, contracts of the files.

files          Write files between stages, complete or not at all, and hash them
fold_settings  Keep a fold's settings, and log their changes after out-of-memory errors
lock           Let one command at a time work on a run
manifest       Tell whether a folder is whole: a manifest, written last, has sizes and hashes
paths          Name every path of the project and of a run, in one place
places         Write paths as they hold on any machine, texts without names and secrets
probabilities  Check probs_*.csv when they are written and when they are read
provenance     Record the origin of a result: packages, Python, machine and commit
run            Open a run: its paths and its settings; find the newest one
stop           Stop a run, or a part of it, where nothing is lost: on a signal, or in time
taking_over    Take a run over from elsewhere
timings        Read the seconds of each archived notebook; write durations
"""
