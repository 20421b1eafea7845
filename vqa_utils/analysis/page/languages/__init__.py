"""Hold the page's words, a module a language.

en  English
ko  Korean
"""
