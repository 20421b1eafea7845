"""The challenge: its CSVs, images, groups and folds. Notebooks 01 and 02 show it.

_csv_files      CSV files as the field writes them, read as text; what is wrong is told by file and line, all of it in one error
challenge       The challenge's files: CSVs in the encodings the field uses, images opened when needed, all problems in one error
duplicates      Pictures and questions that stand in the data more than once, and the sizes of the pictures
easy_vqa        easy-VQA (the PyPI package, MIT licence) as a four-choice challenge of the usual files
extra_rows      More rows to train on (`extra_train`): they join each fold's training, but for those that show what the fold holds out
fingerprint     One number that changes with a challenge's CSVs or with any picture
folds           Folds without leaks: stratified by answer, grouped by image content
groups          Which rows belong together: those of one picture, of nearly one, or of one question
images          Image files, side by side and each read once however many rows show it: contents' hashes, size, and what is wrong
paraphrases     Other words to train a row in (`paraphrase`): its question's, from paraphrases.csv, and without them its instruction's
question_kinds  What a question asks for, told from its words
"""
