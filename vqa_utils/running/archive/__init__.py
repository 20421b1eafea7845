"""Keep what executed notebooks leave: their copies, and what they ran with.

changes      Say what has changed since the notebooks ran that a command reuses
html_copies  Write archived notebooks as HTML too, for readers without Jupyter
notebooks    Write executed notebooks without names and secrets of the machine
origin       Record what a step runs with: its notebook's cells, the package's code, the libraries
"""
