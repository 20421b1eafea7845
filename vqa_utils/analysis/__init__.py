"""Where the model is wrong, and what that is worth. Notebook 06 shows it.

baselines       What a score is worth: the fine-tuned model beside its base, blank images, and answers that never see an image
clusters        Questions that ask for like things, found by their words
error_analysis  Which rows are answered wrong: groups of questions, what chance makes of their differences, and the worst mistakes
figures         The notebooks' figures. Each function returns a closed matplotlib figure, which a notebook shows once
gallery         Rows as cards that a notebook or a page shows: picture, question, options
position_bias   What the place of an option does to an answer, read off the views of a row: orders of its options, rotations of its picture
report          The run's gallery, its table of folds and its HTML page
"""
