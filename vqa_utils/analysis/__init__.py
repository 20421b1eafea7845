"""Find where the model is wrong, and judge what a score is worth. Notebook 06 shows it.

_templates       Render this folder's HTML templates, with every value escaped
baselines        Compare a score with the base, blank images and blind answers
blind_answers    Answer without the image: by letter frequency, option length and words
clusters         Cluster questions by their words
confidence       Compare the model's confidence with its accuracy
error_analysis   Analyse wrong answers: hard groups beyond chance, mixed-up letters, worst mistakes
figures          Draw the notebooks' figures
fonts/           Hangul for the figures, with its licence
gallery          Show rows as cards: picture, question, options
position_bias    Measure the effect of an option's place on the answer
question_groups  Group questions that may be hard
report           Collect results while a notebook shows them; write them as files
suspect_labels   Find labels that look wrong
page/            Write the page of a run, from whatever its folder has by now
"""
