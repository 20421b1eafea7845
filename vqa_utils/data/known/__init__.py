"""Write the challenges that `data` may name instead of a folder.

challenges  Name them, and find their folders
easy_vqa    Write easy-VQA (the PyPI package, MIT licence) as a four-choice challenge
hard_vqa    Draw a harder one, on which switches can be told apart
shapes      Draw coloured shapes
"""
