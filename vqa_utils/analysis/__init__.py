"""Where the model is wrong, and what a score is worth. Notebook 06 shows it.

_templates       The HTML templates of this folder, rendered with every value escaped
baselines        The fine-tuned model beside its base, blank images and blind answers
blind_answers    Answers that never see an image: by letters, lengths and words
clusters         Questions about like things, found by their words
error_analysis   Hard groups beyond chance, confidence, confusions, the worst mistakes
figures          All figures of the notebooks, with their colours
gallery          Rows as cards for a notebook or a page: picture, question, options
position_bias    What the place of an option does to an answer
question_groups  Groups of questions that may be hard
report           The run's page: sections of words, tables and figures
"""
