"""Read and check a challenge: CSVs, images, groups and folds. Notebooks 01 and 02 show it.

_checks         Check a challenge's rows; describe wrong ones by file and line
_csv_files      Read CSV files of any common encoding as text; collect problems
challenge       Read a challenge's CSVs and images: all problems in one error
duplicates      Count pictures and questions that occur more than once; list picture sizes
fingerprint     Hash a run's data: changes with its CSVs or any picture
fold_rows       Select a fold's rows: held out, and to train on, extra rows included
folds           Make folds without leaks: stratified by answer, grouped by image content
groups          Group rows by picture, near-identical picture, or question
paraphrases     Give rows other words to train in (`paraphrase`)
plain_text      Keep a row's words from being read as the chat's own marks
question_kinds  Tell the kind of a question from its words
text_lengths    Measure texts in tokens, and find rows much longer than the others
known/          Write the challenges that `data` may name instead of a folder
pictures/       Read the challenge's pictures
"""
