"""The challenge: its CSVs, images, groups and folds, as notebooks 01 and 02 show them.

_checks         Checks of a challenge's rows, by line of the file
_csv_files      CSV files as the field writes them, read as text
challenge       A challenge, read and checked: all problems in one error; challenges known by name
duplicates      Pictures and questions that occur more than once, and the sizes of the pictures
easy_vqa        easy-VQA (the PyPI package, MIT licence) written as a four-choice challenge
fingerprint     A run's data in one number, which changes with its CSVs or with any picture
fold_rows       The rows of a fold: held out, to train on, and extra rows without leaks
folds           Folds without leaks: stratified by answer, grouped by image content
groups          Rows that belong together: of one picture, of nearly one, or of one question
images          Content hash, size and perceptual hash of each picture, kept in images.csv
paraphrases     Other words to train a row in (`paraphrase`)
question_kinds  The kinds of question, told from their words
"""
