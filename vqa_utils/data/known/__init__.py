"""Write the challenges that `data` may name instead of a folder.

challenges  Name them, and find their folders
easy_vqa    Write easy-VQA (the PyPI package, MIT licence) as a four-choice challenge
"""
