"""Write the page of a run, report/index.html: one file, from whatever its folder has by now.

charts     Lay out bars and lines; the templates draw them
learning   Draw the trainings: loss, held-out scores, memory
numbers    Write numbers as people do
parts      Make the parts about results: words, a chart and a table each
progress   Keep how far a run is, for its page: the driver writes it
results    Keep the results of 06_analysis as data
run_facts  Read how a run was made: settings, folds, notebooks, versions
tables     Lay out a table: names of columns, numbers as text, values to sort by
verdict    Say in a sentence how good the model is
words      Speak the language of a page
writing    Render the templates into the page
languages/ Hold its words, a module a language
"""
